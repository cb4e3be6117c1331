"""Reads the body of a request before a thread or the database is asked for: slow clients hold neither.

A body in memory is small; a larger one goes to a temporary file. A body that the application will refuse is not read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from server.multipart import FORM_LIMIT, IN_MEMORY

Receive = Callable[[], Awaitable[dict[str, Any]]]

ANYBODY = 64 * 1024  # bytes of a body without a valid token; no public route takes more
JSON = 2 * 1024 * 1024  # bytes of a body that is no form; no route takes more
GRACE = 30  # seconds that any body may take
RATE = 10_000  # bytes a second that a body needs on average, after GRACE
WRITTEN = 1024 * 1024  # bytes that a thread writes to a temporary file at once
DISCARDING = 5  # seconds


class TooSlow(Exception):
    """The body did not come in time."""


class Malformed(Exception):
    """The body ended too early, or its chunks are broken."""


class NoRoom(Exception):
    """The body cannot be written to a temporary file."""


@dataclass(frozen=True, slots=True)
class Body:
    """A body as the application reads it."""

    stream: IO[bytes]
    length: int  # bytes; more than are in the stream if the rest was not read
    is_whole: bool  # whether the client has sent all of it


NONE = Body(BytesIO(), 0, True)


def limit_for(headers: Mapping[str, str], is_signed: Callable[[str], bool]) -> int:
    """Return how many bytes of this request's body are read at most."""
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) <= ANYBODY:
        return ANYBODY
    if not is_signed(headers.get("authorization", "")):
        return ANYBODY
    return FORM_LIMIT if headers.get("content-type", "").lower().startswith("multipart/") else JSON


async def read(receive: Receive, declared: int | None, limit: int) -> Body:
    """Return the body, up to a little more than `limit` bytes. `declared` is its Content-Length; None for chunks.

    Raises `TooSlow`, `Malformed` or `NoRoom`.
    """
    if declared is not None and declared > limit:
        return Body(BytesIO(), declared, False)
    body = _Incoming()
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        while True:
            try:
                async with asyncio.timeout_at(began + GRACE + body.length / RATE):
                    message = await receive()
            except TimeoutError:
                raise TooSlow from None
            if message["type"] != "http.request":
                raise Malformed
            await body.add(message["body"])
            if not message["more_body"]:
                if declared is not None and body.length < declared:
                    raise Malformed
                return Body(await body.finished(), body.length, True)
            if body.length > limit:
                return Body(await body.finished(), body.length, False)
    except BaseException as error:
        body.close()
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            raise NoRoom from error
        raise


async def discard(receive: Receive) -> None:
    """Read what is left of a body, for some seconds: a client that sends all before it reads then gets the answer."""
    try:
        async with asyncio.timeout(DISCARDING):
            while (message := await receive())["type"] == "http.request" and message["more_body"]:
                pass
    except TimeoutError:
        pass


class _Incoming:
    """A body that grows, in memory and then in a temporary file."""

    def __init__(self) -> None:
        self.length = 0
        self._pieces: list[bytes] = []
        self._unwritten = 0
        self._file: IO[bytes] | None = None

    async def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._unwritten += len(piece)
        self.length += len(piece)
        if self._unwritten >= WRITTEN:
            await self._write()

    async def _write(self) -> None:
        """Write in a thread: a full disk's cache would stop the loop."""
        piece, self._pieces, self._unwritten = b"".join(self._pieces), [], 0
        file = self._file = self._file or SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        await asyncio.get_running_loop().run_in_executor(None, file.write, piece)

    async def finished(self) -> IO[bytes]:
        if self._file is None:
            return BytesIO(b"".join(self._pieces))
        await self._write()
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
