"""Ends a call of urllib3 after some seconds, however slowly its bytes come and go.

urllib3 has a timeout for each read. A server that sends a byte a second holds a call, and its thread, for hours.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

_calls = threading.local()


class _Call:
    """A call under way, and the connection that it uses."""

    def __init__(self) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def use(self, connected: socket.socket) -> None:
        with self._lock:
            self._socket = connected
            if self.is_over:
                self._cut()

    def end(self) -> None:
        with self._lock:
            self.is_over = True
            self._cut()

    def _cut(self) -> None:
        if self._socket:
            with suppress(OSError):  # it is closed
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads or writes


def _current() -> _Call | None:
    return getattr(_calls, "current", None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Cut the connection of the block's call after this time. The pool must be `interruptible`.

    Raises TimeoutError instead of what the cut call raises, and where a cut call looks whole: headers that were cut do.
    """
    call = _calls.current = _Call()
    timer = threading.Timer(seconds, call.end)
    timer.daemon = True
    timer.start()
    late = TimeoutError(f"it did not end within {seconds} seconds")
    try:
        yield
        if call.is_over:
            raise late
    except Exception as error:
        if call.is_over and error is not late:
            raise late from error
        raise
    finally:
        timer.cancel()
        _calls.current = None


def interruptible(pools: PoolManager) -> None:
    """Let `deadline` end the calls of this pool manager."""
    classes: dict[str, Any] = pools.pool_classes_by_scheme
    connections = {"http": _HTTP, "https": _HTTPS}
    if classes["http"].ConnectionCls is not _HTTP:
        pools.pool_classes_by_scheme = {
            scheme: type(pool.__name__, (pool,), {"ConnectionCls": connections[scheme]})
            for scheme, pool in classes.items()
        }


class _HTTP(HTTPConnection):
    """A connection that hands its socket to the call of its thread."""

    _socket: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        call = _current()
        if call and call.is_over:
            raise TimeoutError("too late for another try")
        made = super()._new_conn()
        self._socket = made.dup()  # TLS detaches the socket that urllib3 has
        if call:
            call.use(self._socket)
        return made

    def request(self, *args: Any, **kwargs: Any) -> None:
        if (call := _current()) and self._socket:
            call.use(self._socket)  # a connection that was kept alive
        super().request(*args, **kwargs)

    def close(self) -> None:
        super().close()
        if self._socket:
            self._socket.close()


class _HTTPS(_HTTP, HTTPSConnection):
    pass
