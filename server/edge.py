"""Serves a WSGI application by ASGI: the body first, then the gate, then a thread, then an answer in pieces.

A client that sends or reads slowly waits in the event loop. It holds no thread and no place in the gate.
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from werkzeug.wsgi import FileWrapper

from server import intake, metrics, seen
from server.errors import Code
from server.gate import Full, Gate, Places, Turn
from server.web import HEADERS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger("hosi")

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

CLOSE = (b"connection", b"close")
PIECE = 256 * 1024  # bytes that are sent at once
LARGE = 1024 * 1024  # bytes; what is larger waits for its reader in a temporary file
OLD = "1"  # granian's word for HTTP/1.0, in which a Host header may be missing
UNREAD = 30  # seconds; a client that reads nothing for longer loses its connection


class Refused(Exception):
    """A request that the application does not see."""

    def __init__(self, status: HTTPStatus, code: Code, msg: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(msg)
        self.status = status
        self.headers = [(b"content-type", b"application/json"), CLOSE, *headers]
        self.body = json.dumps({"msg": msg, "code": code}).encode()


def _malformed(msg: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, Code.MALFORMED, msg)


def _unavailable(code: Code, msg: str) -> Refused:
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, code, msg, (b"retry-after", b"5"))


class Answer:
    """An answer of the application. Its first piece is there; the rest, if any, is still to be computed."""

    def __init__(self, application: "WSGIApplication", environ: dict[str, Any]) -> None:
        """Call the application, up to the first piece."""
        result = application(environ, self._start)  # type: ignore[arg-type]
        self._close: Callable[[], None] = getattr(result, "close", lambda: None)
        try:
            self.is_file = isinstance(result, FileWrapper)
            self.rest = iter(result)
            self.first = next(self.rest, None)
            self.is_whole = self.first is None or len(self.first) == self._length
        except BaseException:
            self._close()
            raise
        if self.is_whole:
            self._close()
            self.rest, self._close = iter(()), lambda: None  # these held the answer, too

    def _start(self, status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
        self.status = int(status[:3])
        self.headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self._length = next((int(value) for name, value in headers if name == "Content-Length"), None)

    def close(self) -> None:
        """Close what the rest came from."""
        self._close()


class Edge:
    """The ASGI application around a WSGI application, for one event loop."""

    def __init__(
        self,
        application: "WSGIApplication",
        threads: int,
        places: Places,
        is_signed: Callable[[str], bool],
        origins: Collection[str] = (),
        shed_after: float = 10,
    ) -> None:
        """Serve with this many threads and these places in the gate, for which a request waits `shed_after` seconds.

        `is_signed` tells whether an Authorization header has a token of ours. Pages of `origins` may read refusals.
        """
        self._application = application
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="request")
        self._is_signed, self._origins = is_signed, frozenset(origins)
        self._places, self._shed_after = places, shed_after
        self._gate: Gate | None = None
        self._ends_connections = False
        metrics.sample("hosi_gate_waiting", "Requests that wait for their turn.", self._waiting)

    def end_connections(self) -> None:
        """End each connection with its next answer: this process stops soon, and clients connect to another one."""
        self._ends_connections = True

    def _waiting(self) -> int:
        return self._gate.waiting if self._gate else 0

    async def __call__(self, scope: Scope, receive: intake.Receive, send: Send) -> None:
        """Answer a request."""
        began = time.perf_counter()
        try:
            headers = _headers(scope)
            body = await self._body(headers, receive)
        except Refused as refused:
            await self._refuse(refused, began, scope, send)
            return
        try:
            environ = _environ(scope, headers, body)
            began = environ[seen.BEGAN]
            await self._answer(environ, send)
        except Refused as refused:
            await self._refuse(refused, began, scope, send)
        finally:
            body.stream.close() if body is not intake.NONE else None
        if not body.is_whole and "expect" not in headers:
            await intake.discard(receive)

    async def _body(self, headers: dict[str, str], receive: intake.Receive) -> intake.Body:
        in_chunks = "transfer-encoding" in headers
        declared = None if in_chunks else int(headers.get("content-length", 0))
        if declared == 0:
            return intake.NONE
        try:
            return await intake.read(receive, declared, intake.limit_for(headers, self._is_signed))
        except intake.TooSlow:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, Code.MALFORMED, "The body did not arrive in time.") from None
        except intake.Malformed:
            raise _malformed(
                "The body is not well-formed: its chunks are broken." if in_chunks else "The body is not complete."
            ) from None
        except intake.NoRoom as error:
            log.error("a temporary file cannot be written: %s", error.__cause__)
            raise _unavailable(Code.UNAVAILABLE, "This server has no room for the files at the moment.") from None

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _inside(self, patience: float | None, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do the work in a thread, inside the gate. `Gate.enter` explains `patience`."""
        if self._gate is None:
            self._gate = Gate(asyncio.get_running_loop(), self._places)
        try:
            turn = await self._gate.enter(patience)
        except Full:
            metrics.refused_by_gate.inc()
            raise _unavailable(Code.BUSY, "This server is busy at the moment. Please try again.") from None
        try:
            return await self._in_thread(_with_turn, turn, work, *arguments)
        finally:
            turn.leave()

    async def _answer(self, environ: dict[str, Any], send: Send) -> None:
        answer: Answer = await self._inside(self._shed_after, Answer, self._application, environ)
        if self._ends_connections:
            answer.headers.append(CLOSE)
        try:
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            if answer.is_whole and len(answer.first or b"") <= PIECE:
                await send({"type": "http.response.body", "body": answer.first or b""})
            else:
                await self._send_pieces(answer, send)
        finally:
            if not answer.is_whole:
                await self._in_thread(answer.close)

    async def _send_pieces(self, answer: Answer, send: Send) -> None:
        """Compute and send piece by piece. A piece of a file is only read."""
        piece, answer.first = answer.first, None
        compute = self._in_thread if answer.is_file else partial(self._inside, None)  # an answer that began goes on
        while piece is not None:
            parts: Iterable[bytes] = _cut(piece)
            if len(piece) > LARGE:
                parts = await self._in_thread(_spooled, piece)
            del piece  # it is in its file, and not in memory
            for part in parts:
                await _send_part(send, part)
            piece = await compute(next, answer.rest, None)
        await send({"type": "http.response.body", "body": b""})

    async def _refuse(self, refused: Refused, began: float, scope: Scope, send: Send) -> None:
        request_id = seen.request_id_of(_header(scope, b"x-request-id"))
        headers: Headers = [*refused.headers, *((k.encode(), v.encode()) for k, v in HEADERS.items())]
        headers.append((b"x-request-id", request_id.encode()))
        origin = _header(scope, b"origin")
        if origin in self._origins:  # else a browser calls the refusal a network error
            headers += [(b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin")]
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": refused.body})
        seen.note(
            {
                "REQUEST_METHOD": scope["method"],
                "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
                "REMOTE_ADDR": (scope.get("client") or ("",))[0],
                seen.BEGAN: began,
            },
            request_id,
            refused.status,
            len(refused.body),
        )


def _with_turn(turn: Turn, work: Callable[..., Any], *arguments: Any) -> Any:
    with turn.in_this_thread():
        return work(*arguments)


async def _send_part(send: Send, part: bytes) -> None:
    async with asyncio.timeout(UNREAD):  # the exception closes the connection
        await send({"type": "http.response.body", "body": part, "more_body": True})


def _cut(body: bytes) -> Iterator[bytes]:
    return (body[start : start + PIECE] for start in range(0, len(body), PIECE))


def _spooled(body: bytes) -> Iterator[bytes]:
    """Write the body to a temporary file, and return its parts. On a full disk the body stays in memory."""
    file = TemporaryFile()  # noqa: SIM115
    try:
        file.write(body)
        file.seek(0)
    except OSError:
        file.close()
        return _cut(body)
    return _read(file)


def _read(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while part := file.read(PIECE):
            yield part


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value for name, value in scope["headers"] if name == wanted), b"").decode("latin-1")


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers, repeated ones joined. Leaves out those with an underscore, which WSGI reads as a hyphen.

    Raises `Refused` for what two servers could read in two ways (request smuggling, RFC 9112 section 11.2).
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if "_" in name:
            continue
        if name not in headers:
            headers[name] = value
        elif name in ("host", "content-length", "transfer-encoding"):
            raise _malformed(f"The request has two headers {name}.")
        else:
            headers[name] += ("; " if name == "cookie" else ",") + value
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"].strip().lower() != "chunked":
            raise _malformed("The only Transfer-Encoding that is taken here is chunked.")
        if "content-length" in headers:
            raise _malformed("The request has both Content-Length and Transfer-Encoding.")
    if not headers.get("host") and scope["http_version"] != OLD:  # granian adds an empty one
        raise _malformed("The request has no Host header.")
    return headers


def _environ(scope: Scope, headers: dict[str, str], body: intake.Body) -> dict[str, Any]:
    """Return the environment of a WSGI application (PEP 3333)."""
    server: Sequence[Any] = scope.get("server") or ("localhost", 0)
    client: Sequence[Any] = scope.get("client") or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": "HTTP/1.0" if scope["http_version"] == OLD else "HTTP/1.1",
        "REMOTE_ADDR": client[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body.stream,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": _file_wrapper,
        seen.BEGAN: time.perf_counter(),
    }
    for name, value in headers.items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value
    environ.pop("HTTP_TRANSFER_ENCODING", None)  # the body is whole by now
    environ.pop("HTTP_CONTENT_LENGTH", None)
    if "HTTP_CONTENT_TYPE" in environ:
        environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE")
    if body is not intake.NONE or "content-length" in headers:
        environ["CONTENT_LENGTH"] = str(body.length)
    return environ


def _file_wrapper(file: IO[bytes], _: int = 0) -> FileWrapper:
    return FileWrapper(file, PIECE)
