"""The queue in front of the encoder: fair, bounded, and honest about what it could not do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from service.errors import DeadlineExceeded, GuardFailed, Overloaded
from service.scoring.batcher import Batcher
from service.scoring.encoder import Encoded, pad


class GatedEncoder:
    """Encodes a window to its first id; waits at a gate so that a test decides when a batch runs."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: Exception | None = None

    def encode(self, ids: Sequence[Sequence[int]]) -> Encoded:
        self.batches.append([list(window) for window in ids])
        self.entered.set()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        first = np.array([[window[0]] for window in ids], np.float32)
        return Encoded(first, first)


@pytest.fixture
def encoder() -> GatedEncoder:
    return GatedEncoder()


@pytest.fixture
async def batcher(encoder: GatedEncoder) -> AsyncIterator[Batcher]:
    batcher = Batcher(encoder, max_batch_tokens=8, queue_windows=10)
    batcher.start()
    yield batcher
    encoder.gate.set()
    await batcher.close()


async def busy(batcher: Batcher, encoder: GatedEncoder) -> asyncio.Task[Encoded]:
    """Hold the worker with one window until the gate opens."""
    encoder.gate.clear()
    encoder.entered.clear()
    task = asyncio.create_task(batcher.encode([[99]], 30))
    assert await asyncio.to_thread(encoder.entered.wait, 10)
    return task


async def queued(batcher: Batcher, count: int) -> None:
    """Let other tasks run until so many windows wait."""
    async with asyncio.timeout(10):
        while batcher.waiting_windows != count:  # noqa: ASYNC110 - yields to the tasks it waits for, no time passes
            await asyncio.sleep(0)


async def test_rows_come_back_in_the_callers_order(batcher: Batcher) -> None:
    ids = [[5], [1, 0, 0, 0], [3, 0], [2, 0, 0], [4]]
    encoded = await batcher.encode(ids, 10)
    assert encoded.logits[:, 0].tolist() == [5, 1, 3, 2, 4]


async def test_no_batch_is_larger_than_the_padded_budget(batcher: Batcher, encoder: GatedEncoder) -> None:
    await batcher.encode([[1] * (1 + n % 4) for n in range(10)], 10)
    assert all(len(batch) * max(map(len, batch)) <= 8 for batch in encoder.batches)


async def test_a_window_larger_than_the_budget_still_runs(batcher: Batcher) -> None:
    assert len((await batcher.encode([[7] * 50, [8]], 10)).logits) == 2


async def test_waiting_callers_share_a_batch(batcher: Batcher, encoder: GatedEncoder) -> None:
    held = await busy(batcher, encoder)
    small = [asyncio.create_task(batcher.encode([[n]], 30)) for n in (1, 2, 3)]
    await queued(batcher, 3)
    encoder.gate.set()
    await asyncio.gather(held, *small)
    assert encoder.batches[1] == [[1], [2], [3]]


async def test_a_short_prompt_does_not_wait_for_all_of_a_long_one(batcher: Batcher, encoder: GatedEncoder) -> None:
    held = await busy(batcher, encoder)
    long = asyncio.create_task(batcher.encode([[1, 1, 1, 1]] * 8, 30))
    await queued(batcher, 8)
    short = asyncio.create_task(batcher.encode([[2, 2, 2, 2]], 30))
    await queued(batcher, 9)
    encoder.gate.set()
    await asyncio.gather(held, long, short)
    assert [2, 2, 2, 2] in encoder.batches[1]


async def test_a_full_queue_refuses_at_once(batcher: Batcher, encoder: GatedEncoder) -> None:
    held = await busy(batcher, encoder)
    waiting = asyncio.create_task(batcher.encode([[1]] * 10, 30))
    await queued(batcher, 10)
    with pytest.raises(Overloaded):
        await batcher.encode([[2]], 30)
    encoder.gate.set()
    await asyncio.gather(held, waiting)


async def test_a_caller_who_left_is_never_encoded(batcher: Batcher, encoder: GatedEncoder) -> None:
    held = await busy(batcher, encoder)
    leaver = asyncio.create_task(batcher.encode([[5]], 30))
    await queued(batcher, 1)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert batcher.waiting_windows == 0
    encoder.gate.set()
    await held
    await batcher.encode([[6]], 10)
    assert [5] not in [window for batch in encoder.batches for window in batch]


async def test_a_deadline_that_passes_is_an_error_and_frees_the_queue(batcher: Batcher, encoder: GatedEncoder) -> None:
    held = await busy(batcher, encoder)
    with pytest.raises(DeadlineExceeded):
        await batcher.encode([[5]] * 10, 0.01)
    assert batcher.waiting_windows == 0
    encoder.gate.set()
    await held


async def test_a_broken_batch_fails_its_callers_and_nobody_else(batcher: Batcher, encoder: GatedEncoder) -> None:
    encoder.error = RuntimeError("secret prompt text")
    with pytest.raises(GuardFailed) as caught:
        await batcher.encode([[1]], 10)
    assert "secret prompt text" not in str(caught.value)
    encoder.error = None
    assert len((await batcher.encode([[2]], 10)).logits) == 1


async def test_closing_fails_who_still_waits(encoder: GatedEncoder) -> None:
    batcher = Batcher(encoder, max_batch_tokens=1)
    batcher.start()
    held = await busy(batcher, encoder)
    waiting = asyncio.create_task(batcher.encode([[1]], 30))
    await queued(batcher, 1)
    closing = asyncio.create_task(batcher.close())
    results = await asyncio.gather(held, waiting, return_exceptions=True)
    encoder.gate.set()
    await closing
    assert [type(result) for result in results] == [GuardFailed, GuardFailed]
    with pytest.raises(GuardFailed):
        await batcher.encode([[1]], 1)


def test_padding_masks_what_is_not_there() -> None:
    ids, mask = pad([[0, 5, 2], [0, 2]], 1)
    assert ids.tolist() == [[0, 5, 2], [0, 2, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
