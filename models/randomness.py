"""Randomness of a training step as a function of seed and step: dropout masks, drawn negatives, hidden contexts.

TensorFlow's usual random operations count their calls inside the process, so a run that goes on from a checkpoint
would draw other numbers than the run that was killed. Here a step opens a stream whose numbers depend on the seed,
the step's number and the replica alone (a counter-based generator: Salmon et al., SC 2011, as in TensorFlow's
stateless operations).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from models.keras import keras, tf

_DRAWS = 2**32  # seeds are below
_REPLICAS = 2**48  # and a step draws fewer than 2**16 times


class RandomStream:
    """Seeds for the draws of one step on one replica, in the order in which the step is traced.

    Args:
        seed: Of the run, below 2**32.
        step: Optimiser steps so far, a scalar tensor or variable.
    """

    def __init__(self, seed: int, step: Any) -> None:
        self.seed, self.step, self.draws = seed, tf.cast(step, tf.int64), 0
        context = tf.distribute.get_replica_context()
        self.replica = tf.cast(context.replica_id_in_sync_group if context else 0, tf.int64)

    def next_seed(self) -> Any:
        """int64 `(2,)`, another one with every call, step, replica and seed."""
        self.draws += 1
        return tf.stack([self.step, self.seed + _DRAWS * self.draws + _REPLICAS * self.replica])


_open: ContextVar[RandomStream | None] = ContextVar("random_stream", default=None)


@contextmanager
def random_stream(seed: int, step: Any) -> Iterator[None]:
    """Everything random that is traced inside follows from `seed` and `step`."""
    token = _open.set(RandomStream(seed, step))
    try:
        yield
    finally:
        _open.reset(token)


def next_seed() -> Any:
    """Seed `(2,)` of the next draw; without an open stream one of TensorFlow's own counting generator."""
    stream = _open.get()
    return tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32) if stream is None else stream.next_seed()


def random_uniform(shape: Any) -> Any:
    """float32 numbers of this shape in [0, 1)."""
    return tf.random.stateless_uniform(shape, next_seed())


@keras.utils.register_keras_serializable(package="tandem")
class StepDropout(keras.layers.Dropout):
    """Dropout whose mask follows from the open stream."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:  # noqa: D102
        if not training or not self.rate:
            return inputs
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed=next_seed())


__all__ = ["StepDropout", "next_seed", "random_stream", "random_uniform"]
