"""One queue in front of the encoder: windows of many requests share batches, nobody waits behind a giant.

After the queue of text-embeddings-inference (core/src/queue.rs): batches are filled up to a budget of padded tokens,
whoever has left is dropped before the model runs, and a full queue refuses at once instead of letting callers wait for
their deadline. Other than there, every waiting request gets its share of a batch, so that a short prompt does not wait
for all the windows of a long one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from service.errors import DeadlineExceeded, GuardFailed, Overloaded
from service.scoring.encoder import Encoded, Floats, WindowEncoder

Ids = Sequence[int]


class _Entry:
    """One caller's windows: which are still to do, and where the results go."""

    def __init__(self, ids: Sequence[Ids], done: asyncio.Future[Encoded]) -> None:
        self.ids = ids
        self.done = done
        # Longest first: a batch then holds windows of nearly equal length.
        self.pending = deque(sorted(range(len(ids)), key=lambda row: -len(ids[row])))
        self.missing = len(ids)
        self.logits: Floats | None = None
        self.vectors: Floats | None = None

    def store(self, rows: list[int], logits: Floats, vectors: Floats) -> None:
        if self.logits is None or self.vectors is None:
            self.logits = np.empty((len(self.ids), logits.shape[1]), np.float32)
            self.vectors = np.empty((len(self.ids), vectors.shape[1]), np.float32)
        self.logits[rows], self.vectors[rows] = logits, vectors
        self.missing -= len(rows)
        if not self.missing and not self.done.done():
            self.done.set_result(Encoded(self.logits, self.vectors))


class Batcher:
    """Runs an encoder in one worker thread for many callers of one event loop.

    `max_batch_tokens` bounds windows × longest window of a batch (one window always fits). `queue_windows` bounds the
    windows that wait.
    """

    def __init__(self, encoder: WindowEncoder, max_batch_tokens: int = 2_048, queue_windows: int = 8_192) -> None:
        self._encoder = encoder
        self._max_batch_tokens = max_batch_tokens
        self._queue_windows = queue_windows
        self._entries: deque[_Entry] = deque()
        self._wake = asyncio.Event()
        self._executor: ThreadPoolExecutor | None = None
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting_windows(self) -> int:
        """Windows that no batch has taken yet."""
        return sum(len(entry.pending) for entry in self._entries)

    def start(self) -> None:
        """Start the worker on the running event loop; again after `close` is fine, twice is not an error."""
        if self._worker is None or self._worker.done():
            self._wake = asyncio.Event()
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="encoder")
            self._worker = asyncio.get_running_loop().create_task(self._run(), name="encoder-batches")

    async def close(self) -> None:
        """Stop; the batch that runs is finished, whoever still waits gets GuardFailed."""
        worker, executor = self._worker, self._executor
        self._worker = self._executor = None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        while self._entries:
            _fail(self._entries.popleft(), GuardFailed("the encoder was shut down"))
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)

    async def encode(self, ids: Sequence[Ids], deadline_s: float) -> Encoded:
        """Encode windows within `deadline_s` seconds from now; row i belongs to `ids[i]`.

        Raises Overloaded at once where the queue has no room, DeadlineExceeded, and GuardFailed where the encoder broke
        or is not running. A caller that is cancelled takes its windows out of the queue.
        """
        worker = self._worker
        if worker is None or worker.done():
            raise GuardFailed("the encoder is not running")
        waiting = self.waiting_windows
        if waiting and waiting + len(ids) > self._queue_windows:
            raise Overloaded("the scoring queue is full")
        if not ids:
            return Encoded(np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
        entry = _Entry(ids, asyncio.get_running_loop().create_future())
        self._entries.append(entry)
        self._wake.set()
        try:
            async with asyncio.timeout(max(deadline_s, 0.0)):
                return await entry.done
        except TimeoutError as error:
            raise DeadlineExceeded("scoring took longer than detection.deadline_s") from error
        finally:
            entry.pending.clear()
            if entry in self._entries:
                self._entries.remove(entry)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = self._next_batch()
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            ids = [entry.ids[row] for entry, rows in batch for row in rows]
            try:
                encoded = await loop.run_in_executor(self._executor, self._encoder.encode, ids)
                first = 0
                for entry, rows in batch:
                    last = first + len(rows)
                    entry.store(rows, encoded.logits[first:last], encoded.vectors[first:last])
                    first = last
            except asyncio.CancelledError:
                for entry, _ in batch:
                    _fail(entry, GuardFailed("the encoder was shut down"))
                raise
            except Exception as error:  # one broken batch must not end the worker for everyone
                for entry, _ in batch:
                    failure = GuardFailed(f"the encoder failed ({type(error).__name__})")
                    failure.__cause__ = error
                    _fail(entry, failure)

    def _next_batch(self) -> list[tuple[_Entry, list[int]]]:
        """Fill a batch round by round, one window of every waiting caller in turn, up to the budget."""
        taken: dict[int, tuple[_Entry, list[int]]] = {}
        longest = count = 0
        full = False
        while self._entries and not full:
            for _ in range(len(self._entries)):
                entry = self._entries.popleft()
                if entry.done.done() or not entry.pending:
                    continue
                length = len(entry.ids[entry.pending[0]])
                if count and max(longest, length) * (count + 1) > self._max_batch_tokens:
                    self._entries.appendleft(entry)  # it is first in the next batch
                    full = True
                    break
                longest, count = max(longest, length), count + 1
                taken.setdefault(id(entry), (entry, []))[1].append(entry.pending.popleft())
                if entry.pending:
                    self._entries.append(entry)
        return list(taken.values())


def _fail(entry: _Entry, error: Exception) -> None:
    entry.pending.clear()
    if not entry.done.done():
        entry.done.set_exception(error)
