"""Several processes that serve one address: started afresh, watched, replaced where one dies, stopped together.

Each accepts from the same socket. What they share is outside of them: the database, and the counters in Valkey.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import monotonic
from typing import Any

import structlog

from service.errors import FirewallError
from service.settings import Settings

Serve = Callable[[Settings, socket.socket, Callable[[], bool]], int]

_GRACE_S = 35.0
"""For a worker to end by itself after it was told to; longer than what it gives its own requests."""
_MIN_LIFE_S = 5.0
"""A worker that ends sooner is not replaced at once, but when so much time has passed since its start."""

_log = structlog.get_logger("workers")


def supervise(serve: Serve, settings: Settings, listener: socket.socket) -> int:
    """Keep `settings.server.workers` of them running until a signal or a failed start ends them all.

    A worker that cannot start the first time says why itself, and its status is the answer here.
    """
    return _Supervisor(serve, settings, listener).run()


class _Worker:
    """One process. `ready` gets a message once it serves; `replaces` says that there was one in its place before."""

    def __init__(
        self, serve: Serve, settings: Settings, listener: socket.socket, number: int, *, replaces: bool = False
    ) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads and locks that nobody frees
        self.number = number
        self.replaces = replaces
        self.begun = monotonic()
        self.served = False
        self.ready, told = context.Pipe(duplex=False)
        self.process: SpawnProcess = context.Process(
            target=_work,
            args=(serve, settings, listener, told, number == 0 and not replaces),
            name=f"worker-{number}",
        )
        self.process.start()
        told.close()


class _Supervisor:
    def __init__(self, serve: Serve, settings: Settings, listener: socket.socket) -> None:
        self._serve = serve
        self._settings = settings
        self._listener = listener
        self._woken, self._waker = socket.socketpair()
        self._stopping = False
        self._status = 0

    def run(self) -> int:
        self._waker.setblocking(False)
        # The signal's byte ends the wait below; the handler itself has nothing to do.
        before = {kind: signal.signal(kind, self._stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        waking = signal.set_wakeup_fd(self._waker.fileno())
        workers: list[_Worker] = []
        try:
            for number in range(self._settings.server.workers):
                workers.append(_Worker(self._serve, self._settings, self._listener, number))
            while not self._stopping:
                self._wait(workers)
                workers = [self._looked_at(worker) for worker in workers]
        finally:
            signal.set_wakeup_fd(waking)
            for worker in workers:
                worker.process.terminate()
            deadline = monotonic() + _GRACE_S
            for worker in workers:
                worker.process.join(max(0.0, deadline - monotonic()))
                worker.process.kill()
                worker.process.join()
            for kind, handler in before.items():
                signal.signal(kind, handler)
            self._woken.close()
            self._waker.close()
        return self._status

    def _stop(self, *_: Any) -> None:
        self._stopping = True

    def _wait(self, workers: list[_Worker]) -> None:
        now = monotonic()
        waited: list[Any] = [self._woken]
        pause_s: list[float] = []
        for worker in workers:
            if worker.process.is_alive():
                waited += [worker.process.sentinel, *([] if worker.served else [worker.ready])]
            else:
                pause_s.append(max(0.0, worker.begun + _MIN_LIFE_S - now))
        wait(waited, min(pause_s, default=None))

    def _looked_at(self, worker: _Worker) -> _Worker:
        """The worker, or the one that takes its place."""
        if not worker.served and worker.ready.poll():
            try:
                worker.served = bool(worker.ready.recv())
            except EOFError:
                worker.served = False
        if worker.process.is_alive() or self._stopping:
            return worker
        worker.process.join()
        if not (worker.served or worker.replaces):
            # Another start would end the same way.
            self._stopping, self._status = True, worker.process.exitcode or 1
            return worker
        if monotonic() - worker.begun < _MIN_LIFE_S:
            return worker
        _log.error("worker died", worker=worker.number, status=worker.process.exitcode)
        return _Worker(self._serve, self._settings, self._listener, worker.number, replaces=True)


def _work(serve: Serve, settings: Settings, listener: socket.socket, told: Connection, speaks: bool) -> None:
    """What runs in the new process. One of them, which `speaks`, says what is served where."""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def started() -> bool:
        told.send(True)
        return speaks

    try:
        sys.exit(serve(settings, listener, started))
    except FirewallError as error:
        print(f"semantic-firewall: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with_parent() -> None:
    """Nobody would stop this process, and its address would stay taken, if the one that watches it were killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
