"""Lets few requests of a worker into Python at once; the others wait in the order in which they came.

With 64 threads that compute side by side, each waits for all others, and the slowest of a hundred requests takes 13
times as long as the usual one. A request that only waits, for an image store or for the turn to write, leaves the gate.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

SLOW_AFTER = 0.1  # seconds

_current = threading.local()


class Places(NamedTuple):
    """How many requests are inside at once."""

    quick: int
    slow: int  # besides, once they took longer than SLOW_AFTER


class Full(Exception):
    """A request waited for as long as it may and was not let in."""


class Turn:
    """A request's stay inside the gate."""

    def __init__(self, gate: "Gate") -> None:
        self._gate = gate
        self.began = 0.0

    def leave(self) -> None:
        """Leave the gate. Call it in the thread of the loop."""
        self._gate.leave(self)

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """Let `outside` find this turn while the block runs in this thread."""
        _current.turn = self
        try:
            yield
        finally:
            _current.turn = None

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Leave the gate for a block of a worker's thread. The way back is free: the request may hold a lock by now."""
        self._gate.call_in_loop(self._gate.leave, self)
        try:
            yield
        finally:
            self._gate.call_in_loop(self._gate.admit, self)


@contextmanager
def outside() -> Iterator[None]:
    """Leave the gate while the block waits for something outside of Python. Does nothing where there is no gate."""
    turn: Turn | None = getattr(_current, "turn", None)
    if turn is None:
        yield
        return
    with turn.outside():
        yield


class Gate:
    """The gate of a worker. Only the thread of its event loop touches it, so it needs no lock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, places: Places) -> None:
        self._loop, self._places = loop, places
        self.call_in_loop = loop.call_soon_threadsafe
        self._quick: dict[Turn, None] = {}  # in the order of their entry
        self._slow: set[Turn] = set()
        self._waiting: deque[tuple[asyncio.Future[None], Turn]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return len(self._waiting)

    async def enter(self, patience: float | None) -> Turn:
        """Return a turn, after those who wait already have got theirs.

        Raises `Full` after `patience` seconds. None waits for as long as it takes.
        """
        turn = Turn(self)
        if self._waiting or len(self._quick) >= self._places.quick:
            await self._wait(turn, patience)
        else:
            self.admit(turn)
        return turn

    def admit(self, turn: Turn) -> None:
        """Count the turn as inside."""
        turn.began = time.monotonic()
        self._quick[turn] = None

    def leave(self, turn: Turn) -> None:
        """Count the turn as outside, and let the next ones in."""
        self._quick.pop(turn, None)
        self._slow.discard(turn)
        self._let_in()

    async def _wait(self, turn: Turn, patience: float | None) -> None:
        place = self._loop.create_future()
        self._waiting.append((place, turn))
        if self._timer is None:
            self._watch()
        try:
            async with asyncio.timeout(patience):
                await place
        except BaseException as error:
            with suppress(ValueError):
                self._waiting.remove((place, turn))
            self.leave(turn)  # it may have been let in at the last moment
            if isinstance(error, TimeoutError):
                raise Full from None
            raise

    def _let_in(self) -> None:
        while self._waiting and len(self._quick) < self._places.quick:
            place, turn = self._waiting.popleft()
            if not place.done():
                self.admit(turn)
                place.set_result(None)

    def _watch(self) -> None:
        """Stop counting the turns that take long. Looks again while requests wait."""
        now = time.monotonic()
        while self._quick and len(self._slow) < self._places.slow:
            oldest = next(iter(self._quick))
            if now - oldest.began < SLOW_AFTER:
                break
            del self._quick[oldest]
            self._slow.add(oldest)
        self._let_in()
        self._timer = self._loop.call_later(SLOW_AFTER / 4, self._watch) if self._waiting else None
