"""Where the work of a request runs: never on the event loop if it could hold up other requests."""

import threading

import numpy as np
import pytest

from serving.server.execution import RequestPool
from serving.server.status import Code, StatusError


@pytest.mark.parametrize(("num_values", "on_the_loop"), [(10, True), (100_000, False)])
async def test_only_small_answers_are_written_on_the_event_loop(num_values: int, on_the_loop: bool) -> None:
    pool = RequestPool(1, 10)
    values = [np.zeros((num_values // 2, 1)), np.zeros(num_values // 2)]
    thread = await pool.write(values, threading.current_thread)
    assert (thread is threading.current_thread()) == on_the_loop
    assert pool.pending == 0
    pool.close()


async def test_an_answer_written_in_a_thread_is_the_same_request() -> None:
    pool = RequestPool(1, 10)
    with pool.admitted():
        pending = await pool.write([np.zeros(100_000)], lambda: pool.pending)
    assert (pending, pool.pending) == (1, 0)
    pool.close()


async def test_requests_without_a_thread_count_as_well() -> None:
    pool = RequestPool(1, 2)
    with pool.admitted(), pool.admitted():
        with pytest.raises(StatusError, match="overloaded: 2 requests") as caught:
            await pool.run(lambda: None)
        with pytest.raises(StatusError, match="overloaded"), pool.admitted():
            pass
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert await pool.run(lambda: "room again") == "room again"
    pool.close()
