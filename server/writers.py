"""Lets those who write to an SQLite file begin in the order in which they came: first threads, then processes.

SQLite's own wait is a sleep that grows, and whoever comes last may be the first. Of two processes with 64 clients, the
slowest of a hundred requests took 60 to 240 times as long as the usual one.
"""

import os
import sqlite3
import threading
import time
from collections import deque
from contextlib import suppress

from server import gate

try:
    import fcntl
except ImportError:  # Windows, where one process serves
    fcntl = None  # type: ignore[assignment]

BUSY_TIMEOUT = 20  # seconds that a transaction waits for others who write
PAUSE = 0.001  # seconds between two looks at another process


class FairLock:
    """Is held by one thread at a time, the one that waits for the longest time. Any thread may release it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_held = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, timeout: float = 0) -> bool:
        """Return whether the caller holds the lock now. Waits for `timeout` seconds at most."""
        with self._lock:
            if not self._is_held:
                self._is_held = True
                return True
            if not timeout:
                return False
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=timeout):
            return True
        with self._lock:
            if turn not in self._waiting:
                return True  # the lock was handed over at the last moment
            self._waiting.remove(turn)
            return False

    def release(self) -> None:
        """Hand the lock over to the thread that waits for the longest time."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_held = False


class Writers:
    """The threads that write to one file. A thread has its turn until its transaction ends."""

    def __init__(self, path: str) -> None:
        self.turns = FairLock()
        self._queue: int | None = None
        if fcntl and path not in ("", ":memory:"):
            with suppress(OSError):  # a folder that can only be read: processes wait as SQLite lets them
                self._queue = os.open(f"{path}-queue", os.O_RDWR | os.O_CREAT, 0o660)

    def stand_in_line(self) -> bool:
        """Return whether this process is the next to begin. Else another process is, and waits for the writer."""
        if self._queue is None:
            return True
        try:
            fcntl.flock(self._queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def leave_line(self) -> None:
        if self._queue is not None:
            fcntl.flock(self._queue, fcntl.LOCK_UN)


class WriterConnection(sqlite3.Connection):
    """A connection that has its turn to write until its transaction ends."""

    _writers: Writers | None = None  # while it has its turn

    def begin_writing(self, writers: Writers) -> bool:
        """Begin a transaction that writes. Waits outside of the gate, and returns False if that takes too long."""
        end = time.monotonic() + BUSY_TIMEOUT
        if self._writers is None and not writers.turns.acquire():
            with gate.outside():
                if not writers.turns.acquire(BUSY_TIMEOUT):
                    return False
        self._writers = writers
        self.execute("PRAGMA busy_timeout=0")
        try:
            if writers.stand_in_line() and self._begun():
                return True
            with gate.outside():
                while not (writers.stand_in_line() and self._begun()):
                    if time.monotonic() > end:
                        return False
                    time.sleep(PAUSE)
            return True
        finally:
            writers.leave_line()
            self.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT * 1000}")

    def _begun(self) -> bool:
        try:
            self.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False
        return True

    def _end_turn(self) -> None:
        writers, self._writers = self._writers, None
        if writers:
            writers.turns.release()

    def commit(self) -> None:
        """Commit. If that fails the transaction goes on, and a rollback ends it."""
        super().commit()
        self._end_turn()

    def rollback(self) -> None:
        try:
            super().rollback()
        finally:
            self._end_turn()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._end_turn()
