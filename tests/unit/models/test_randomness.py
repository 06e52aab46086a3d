"""What a step draws depends on seed, step and replica, and on nothing else."""

from __future__ import annotations

import numpy as np

from models.keras import tf
from models.randomness import StepDropout, random_stream, random_uniform


def draws(seed: int, step: int, count: int = 2) -> list[np.ndarray]:
    with random_stream(seed, step):
        return [random_uniform([1000]).numpy() for _ in range(count)]


def test_the_same_step_draws_the_same_numbers_and_every_other_draw_others() -> None:
    first = draws(3, 10)
    random_uniform([5])  # outside of the stream: changes nothing in it
    for one, two in zip(first, draws(3, 10), strict=True):
        np.testing.assert_array_equal(one, two)
    others = [first[1], draws(3, 11)[0], draws(4, 10)[0], draws(10, 3)[0]]
    assert all(np.abs(first[0] - other).mean() > 0.2 for other in others)


def test_numbers_are_uniform() -> None:
    values = np.concatenate([draws(7, step, 1)[0] for step in range(50)])
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert values.min() >= 0 and values.max() < 1
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000 * 0.9)  # five standard deviations


def test_a_traced_step_draws_anew_with_the_steps_number() -> None:
    layer, step = StepDropout(0.4), tf.Variable(0, dtype=tf.int64)

    @tf.function
    def train() -> tf.Tensor:
        with random_stream(1, step):
            return layer(tf.ones([200, 50]), training=True)

    first, again = train().numpy(), train().numpy()
    step.assign_add(1)
    later = train().numpy()
    np.testing.assert_array_equal(first, again)
    assert (first != later).any()
    assert set(np.unique(first.round(5))) == {0.0, np.float32(1 / 0.6).round(5)}
    assert abs((first == 0).mean() - 0.4) < 5 * np.sqrt(0.24 / first.size)


def test_replicas_draw_different_numbers() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    @tf.function
    def step() -> tf.Tensor:
        def draw() -> tf.Tensor:
            with random_stream(5, tf.constant(2, tf.int64)):
                return random_uniform([100])

        return strategy.experimental_local_results(strategy.run(draw))

    one, two = (value.numpy() for value in step())
    assert np.abs(one - two).mean() > 0.2


def test_without_training_nothing_is_dropped_and_without_a_stream_the_mask_changes() -> None:
    layer, ones = StepDropout(0.5), tf.ones([100, 100])
    np.testing.assert_array_equal(layer(ones, training=False), ones)
    np.testing.assert_array_equal(StepDropout(0.0)(ones, training=True), ones)
    assert (layer(ones, training=True).numpy() != layer(ones, training=True).numpy()).any()
