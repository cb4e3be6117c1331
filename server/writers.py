"""Lets the threads of a process write to an SQLite file in the order in which they asked.

SQLite's own wait is a sleep that grows, and not fair: of 64 connections the slowest of a hundred requests took 14 times
as long as the usual one.
"""

import sqlite3
import threading
from collections import deque

from server import gate

BUSY_TIMEOUT = 20  # seconds that a transaction waits for others who write


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


class WriterConnection(sqlite3.Connection):
    """A connection that has its turn to write until its transaction ends."""

    _turns: FairLock | None = None  # where it has its turn

    def wait_to_write(self, turns: FairLock) -> None:
        """Wait outside of the gate. The caller goes on after `BUSY_TIMEOUT`: SQLite then says "locked"."""
        if self._turns is None and not turns.acquire():
            with gate.outside():
                if not turns.acquire(BUSY_TIMEOUT):
                    return
        self._turns = turns

    def _end_turn(self) -> None:
        turns, self._turns = self._turns, None
        if turns:
            turns.release()

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
