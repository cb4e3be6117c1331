"""A busy worker: a request that waits too long for its turn is refused, and an answer that began goes on."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from threading import Event
from typing import Any

from server.edge import Edge
from server.gate import Places

SCOPE = {
    "type": "http",
    "method": "GET",
    "http_version": "1.1",
    "scheme": "http",
    "raw_path": b"/",
    "query_string": b"",
    "headers": [(b"host", b"clinic.test")],
}
WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def edge_of(application: WSGI) -> Edge:
    """A server that computes one request at once, and refuses one that waits for 0.1 seconds."""
    return Edge(application, 4, Places(quick=1, slow=0), lambda _: True, shed_after=0.1)  # type: ignore[arg-type]


async def ask(edge: Edge) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return status, headers and body."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    await edge(dict(SCOPE), receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message["body"] for message in sent[1:])


def test_a_request_that_waits_too_long_is_told_to_come_again() -> None:
    go = Event()

    def slow(_: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        go.wait(10)
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    async def story() -> None:
        edge = edge_of(slow)
        first = asyncio.create_task(ask(edge))
        await asyncio.sleep(0.02)
        began = time.monotonic()
        status, headers, body = await ask(edge)
        assert 0.1 <= time.monotonic() - began < 1
        assert (status, headers[b"retry-after"]) == (503, b"5")
        assert json.loads(body)["code"] == "busy"
        go.set()
        assert (await first)[2] == b"ok"
        assert (await ask(edge))[0] == 200

    asyncio.run(story())


def test_a_stream_that_began_waits_and_is_not_cut() -> None:
    began, go = Event(), Event()

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        start("200 OK", [])
        if began.is_set():  # the second request computes for longer than a request may wait
            go.wait(10)
            return [b"late"]
        began.set()
        return iter([b"one", b"two", b"three"])

    async def story() -> None:
        edge = edge_of(application)
        pieces: list[bytes] = []
        resumed = asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            pieces.append(message.get("body", b""))
            if pieces[-1] == b"one":
                await resumed.wait()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        stream = asyncio.create_task(edge(dict(SCOPE), receive, send))
        await asyncio.to_thread(began.wait, 5)
        second = asyncio.create_task(ask(edge))
        await asyncio.sleep(0.05)
        resumed.set()
        await asyncio.sleep(0.3)
        go.set()
        await stream
        assert b"".join(pieces) == b"onetwothree"
        assert (await second)[2] == b"late"

    asyncio.run(story())
