"""Clients of the application under test: HTTP requests and `flask` commands."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, TypeVar

import described
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.serving import make_server
from werkzeug.test import EnvironBuilder, TestResponse, encode_multipart

from server.errors import LARGEST_ANSWER, Code

T = TypeVar("T")


class Client:
    """Someone who speaks to the server: `client.get("/patients")` gives the response, `.json` its body."""

    def __init__(self, app: Flask, token: str | None = None, user: dict[str, Any] | None = None) -> None:
        self.app, self.token, self.user = app, token, user or {}
        self.http: FlaskClient = app.test_client()

    def send(self, method: str, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        headers = dict(kwargs.pop("headers", {}))
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        if json is not None:
            kwargs["json"] = json
        if isinstance(kwargs.get("data"), dict):
            kwargs |= form(kwargs["data"])
        response = self.http.open(path, method=method, headers=headers, buffered=True, **kwargs)
        described.check(self.app, response)
        if response.status_code >= 400 and response.is_json and response.data:  # HEAD has no body
            check_problem(response.json)
        return response

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        return self.send("GET", path, **kwargs)

    def post(self, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        return self.send("POST", path, json, **kwargs)

    def patch(self, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        return self.send("PATCH", path, json, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> TestResponse:
        return self.send("DELETE", path, **kwargs)


def form(fields: dict[str, Any]) -> dict[str, Any]:
    """A request's body as multipart/form-data. The test client's own encoder leaves a file open."""
    boundary, body = encode_multipart(fields)
    return {"data": body, "content_type": f"multipart/form-data; boundary={boundary}"}


IN_ORDER = ("msg", "code", "errors", "conflict", "conflicts", "total", "merged_into", "current")


def check_problem(body: dict[str, Any]) -> None:
    """The body of a failure has its parts in their order, a known code, and sentences for a person."""
    assert list(body) == [part for part in IN_ORDER if part in body], body
    assert body["code"] in list(Code), body
    for text in [body["msg"], *(text for texts in body.get("errors", {}).values() for text in texts)]:
        assert re.fullmatch(r"[A-Z].*\.", text), f"{text!r} is no sentence"
    assert all(text in body["msg"] for texts in body.get("errors", {}).values() for text in texts) or (
        body["code"] != Code.INVALID
    ), body
    current = body.pop("current", None)
    assert len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()) <= LARGEST_ANSWER
    body |= {"current": current} if current else {}


def assert_refused(response: TestResponse, status: int, *fields: str) -> None:
    """The answer is a failure with this status, in the one error body, and blames exactly these fields."""
    assert response.status_code == status, response.text
    assert response.is_json
    check_problem(response.json)
    blamed = response.json.get("errors", {})
    assert sorted(blamed) == sorted(fields), response.json


def at_once(*calls: Callable[[], T]) -> list[T]:
    """What the calls return, in their order. All start at the same moment, each in its own thread."""
    ready = Barrier(len(calls))

    def go(call: Callable[[], T]) -> T:
        ready.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(go, calls))


def run_cli(app: Flask, *arguments: str) -> tuple[int, str]:
    """The exit code of a `flask` command and its output. Raises what the command does not catch."""
    result = app.test_cli_runner().invoke(args=arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def migrate(app: Flask, *arguments: str) -> None:
    """Runs `flask db` with these arguments; it must succeed."""
    code, output = run_cli(app, "db", *arguments)
    assert code == 0, output


def next_of(response: TestResponse) -> str | None:
    """The address of the next page, None on the last one."""
    link = response.headers.get("Link")
    if link is None:
        return None
    found = re.fullmatch(r'<(.+)>; rel="next"', link)
    assert found, link
    return found[1]


def pages(client: Client, path: str) -> Iterator[list[dict[str, Any]]]:
    following: str | None = path
    while following:
        response = client.get(following)
        assert response.status_code == 200, response.json
        yield response.json
        following = next_of(response)


def all_pages(client: Client, path: str) -> list[int]:
    return [row["id"] for page in pages(client, path) for row in page]


def ids(response: TestResponse) -> list[int]:
    assert response.status_code == 200, response.json
    return [row["id"] for row in response.json]


def stream_of(app: Flask, client: Client, path: str = "/patients") -> Any:
    """The answer as the WSGI server has it: to be iterated, and closed."""
    environ = EnvironBuilder(path, headers={"Authorization": f"Bearer {client.token}"}).get_environ()
    return app.wsgi_app(environ, lambda *_: None)


WHOLE = (0, "The history is whole.\n")


def verify(app: Flask, *options: str) -> str:
    code, said = run_cli(app, "audit", "verify", *options)
    assert code == (said != WHOLE[1])
    return said


def wait_until(happened: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def minutes_locked(response: TestResponse) -> int:
    assert response.status_code == 429, response.json
    return round(int(response.headers["Retry-After"]) / 60)


@contextmanager
def listening(app: Flask) -> Iterator[str]:
    """The address at which the application listens, for clients of another kind than `Client`."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
