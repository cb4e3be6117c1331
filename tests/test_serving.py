"""The server as `make run` starts it: real processes, raw connections, and clients that behave badly."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from factories import PASSWORD

from testing.processes import workers_of

ROOT = Path(__file__).resolve().parent.parent
HOST = b"Host: clinic.test\r\n"
PATIENT = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
JSON = "Content-Type: application/json"


class Served:
    """A server and its clients."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder, self.port = folder, free_port()
        self.database = folder / "hosi.db"
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.environment = {
            **kept,
            "FLASK_ENV": "development",
            "INSTANCE_PATH": str(folder),
            "PORT": str(self.port),
            "BCRYPT_LOG_ROUNDS": "4",
            "RATELIMIT_ENABLED": "false",
            "WEB_CONCURRENCY": "1",
            **settings,
        }
        self.token = ""

    def start(self) -> None:
        self.log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "serve.py"],
            cwd=ROOT,
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until(self.answers, 30)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.said()
        with suppress(OSError):
            return self.raw("GET /healthz").startswith(b"HTTP/1.1 200")
        return False

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(40)
        self.log.close()

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        return workers_of(self.process.pid)

    def connect(self) -> socket.socket:
        if path := self.environment.get("HOST", "").partition("unix:")[2]:
            line = socket.socket(socket.AF_UNIX)
            with ExitStack() as on_failure:
                on_failure.callback(line.close)
                line.connect(path)
                on_failure.pop_all()
        else:
            line = socket.create_connection((self.environment.get("HOST", "127.0.0.1"), self.port))
        line.settimeout(20)
        return line

    def raw(self, head: str, body: bytes = b"", *headers: str) -> bytes:
        """Send a request, and return all that comes until the server closes the connection."""
        lines = [f"{head} HTTP/1.1", "Host: clinic.test", "Connection: close", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return self.bytes("\r\n".join([*lines, "", ""]).encode() + body)

    def bytes(self, sent: bytes) -> bytes:
        with self.connect() as line:
            line.sendall(sent)
            return all_of(line)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = [f"Authorization: Bearer {self.token}"] if self.token else []
        content = b"" if body is None else json.dumps(body).encode()
        answer = self.raw(f"{method} {path}", content, *headers, *([JSON] if content else []))
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(rest)

    def sign_in(self) -> None:
        ada = {"email": "ada@clinic.test", "password": PASSWORD}
        assert (
            self.ask("POST", "/signup", {"first_name": "Ada", "last_name": "Otieno", "role": "admin", **ada})[0] == 201
        )
        self.token = self.ask("POST", "/login", ada)[1]["access_token"]

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self.database, timeout=20)) as connection, connection:
            return connection.execute(statement, values).fetchall()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def all_of(line: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionResetError):
        while piece := line.recv(1 << 20):
            answer += piece
    return answer


def until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that has its tables, an administrator in it, and 30 MB of patients."""
    folder = tmp_path_factory.mktemp("empty")
    served = Served(folder)
    command = [sys.executable, "-m", "flask", "--app", "app", "db", "upgrade"]
    subprocess.run(command, cwd=ROOT, env=served.environment, check=True, capture_output=True)
    return folder


@contextmanager
def serving(folder: Path, empty: Path, **settings: str) -> Iterator[Served]:
    for name in ("hosi.db", "secrets.env"):
        (folder / name).write_bytes((empty / name).read_bytes())
    served = Served(folder, **settings)
    served.start()
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, empty: Path) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), empty, HEALTH_PORT=str(free_port())) as served:
        served.sign_in()
        for _ in range(3):
            assert served.ask("POST", "/patients", PATIENT)[0] == 201
        yield served


@pytest.fixture(scope="module")
def filled(served: Served) -> Served:
    """A server with 60 MB of patients."""
    columns = "created_at, updated_at, version, first_name, last_name, phone_number, status, diagnosis, sex"
    served.sql(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)"
        f" INSERT INTO patients (mrn, doctor_summary, {columns})"
        f" SELECT 'X' || i, ?, {columns} FROM patients, n WHERE id = 1",
        "x" * 100_000,
    )
    return served


def quick(served: Served) -> None:
    """Other requests are answered within a second."""
    for path in ("/healthz", "/patient/1"):
        began = time.monotonic()
        assert served.ask("GET", path)[0] == 200
        assert time.monotonic() - began < 1


def status(answer: bytes) -> int:
    return int(answer.split()[1])


# --- Slow clients ---


def test_unfinished_headers_stop_nobody(served: Served) -> None:
    with ExitStack() as lines:
        for _ in range(80):
            lines.enter_context(served.connect()).sendall(b"GET /healthz HTTP/1.1\r\n" + HOST)
        quick(served)


def test_unfinished_bodies_stop_nobody(served: Served) -> None:
    head = f"POST /patients HTTP/1.1\r\nAuthorization: Bearer {served.token}\r\n{JSON}\r\nContent-Length: 90\r\n"
    with ExitStack() as lines:
        for _ in range(80):
            lines.enter_context(served.connect()).sendall(head.encode() + HOST + b'\r\n{"first_name"')
        quick(served)


@pytest.mark.parametrize("path", ["/patients", "/patients?limit=500"], ids=["stream", "page"])
def test_readers_that_read_nothing_stop_nobody(filled: Served, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nAuthorization: Bearer {filled.token}\r\n".encode() + HOST + b"\r\n"
    with ExitStack() as lines:
        for _ in range(20 if "limit" in path else 16):
            line = lines.enter_context(filled.connect())
            line.sendall(request)
            assert line.recv(15) == b"HTTP/1.1 200 OK"
        quick(filled)


def test_a_slow_reader_gets_the_whole_answer(filled: Served) -> None:
    with filled.connect() as line:
        line.sendall(f"GET /patients HTTP/1.1\r\nAuthorization: Bearer {filled.token}\r\n".encode() + HOST + b"\r\n")
        read = 0
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            piece = line.recv(1 << 18)
            assert piece
            tail, read = (tail + piece)[-100:], read + len(piece)
        assert tail.endswith(b"]\r\n0\r\n\r\n")
        assert read > 60_000_000


def test_a_large_upload_that_is_refused_gets_its_answer(served: Served) -> None:
    """The client sends all before it reads: a connection that is reset would take the answer with it."""
    form = "Content-Type: multipart/form-data; boundary=XX"
    bearer = f"Authorization: Bearer {served.token}"
    part = b'--XX\r\nContent-Disposition: form-data; name="shoe_size"\r\n\r\n43\r\n'
    assert status(served.raw("POST /reports", part + b"x" * 10_000_000, form)) == 401
    assert status(served.raw("POST /reports", part + b"x" * 10_000_000, form, bearer)) == 422
    assert status(served.raw("POST /patients", b"x" * 10_000_000, JSON, bearer)) == 413
    assert status(served.raw("POST /login", b"x" * 10_000_000, JSON)) == 413


# --- HTTP as it is sent ---


def test_a_head_has_the_length_of_the_body_and_no_body(served: Served) -> None:
    head, _, rest = served.raw("HEAD /healthz").partition(b"\r\n\r\n")
    assert b"content-length: 15" in head
    assert rest == b""


def test_expect_is_answered_before_the_body_is_sent(served: Served) -> None:
    body = json.dumps({"email": "nobody@clinic.test", "password": "x"}).encode()
    head = f"POST /login HTTP/1.1\r\n{JSON}\r\nExpect: 100-continue\r\nConnection: close\r\n".encode() + HOST
    with served.connect() as line:
        line.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        assert line.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body)
        assert status(all_of(line)) == 401


def test_a_body_that_is_too_large_is_not_asked_for(served: Served) -> None:
    head = f"POST /login HTTP/1.1\r\n{JSON}\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n".encode() + HOST
    assert status(served.bytes(head + b"\r\n")) == 413


def test_requests_in_one_piece_are_answered_in_their_order(served: Served) -> None:
    get = b"GET %s HTTP/1.1\r\n" + HOST
    answer = served.bytes(
        get % b"/healthz" + b"\r\n" + get % b"/no" + b"\r\n" + get % b"/" + b"Connection: close\r\n\r\n"
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404", b"200"]


def test_a_body_in_chunks_is_read(served: Served) -> None:
    body = json.dumps({"email": "ada@clinic.test", "password": PASSWORD}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
    head = f"POST /login HTTP/1.1\r\n{JSON}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n".encode() + HOST
    assert status(served.bytes(head + b"\r\n" + chunks)) == 200
    broken = served.bytes(head + b"\r\nZZZ\r\n{}\r\n0\r\n\r\n")
    assert status(broken) == 400
    assert b'"code": "malformed"' in broken


SMUGGLING = {
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "two encodings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "gzip and chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked is not last (CVE-2024-1135)": b"Transfer-Encoding: chunked,gzip\r\n\r\n0\r\n\r\n",
    "another word (CVE-2024-6827)": b"Transfer-Encoding: chunked,xchunked\r\n\r\n0\r\n\r\n",
    "a quoted word": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a signed length": b"Content-Length: +5\r\n\r\nhello",
    "two hosts": b"Host: other.test\r\n\r\n",
}


@pytest.mark.parametrize("form", SMUGGLING)
def test_what_two_servers_could_read_in_two_ways_is_refused(served: Served, form: str) -> None:
    second = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    answer = served.bytes(b"POST /login HTTP/1.1\r\n" + HOST + SMUGGLING[form] + second)
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1


def test_after_a_length_beside_chunks_the_connection_ends(served: Served) -> None:
    """RFC 9112 section 6.1: the chunks count, and nothing after them is a request."""
    body = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = served.bytes(b"POST /login HTTP/1.1\r\n" + HOST + body + b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "sent", [b"rubbish\r\n\r\n", b"GET /healthz HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n" + HOST + b"\r\n"]
)
def test_bad_http_is_refused(served: Served, sent: bytes) -> None:
    assert status(served.bytes(sent)) == 400


@pytest.mark.parametrize(
    "asked",
    [
        *("GET /%FF", "GET /patient/%FF", "GET /media/%FF", "GET /static/%FF", "POST /%FF", "GET /%00", "GET /%C0%AF"),
        *("GET /%ED%A0%80", "GET /%zz", "GET /../healthz", "OPTIONS *", "OPTIONS /%FF"),
    ],
)
def test_an_address_that_is_no_text_or_no_path_has_nothing(served: Served, asked: str) -> None:
    method, path = asked.split()
    answered, body = served.ask(method, path)
    assert (answered, body["code"]) == (404, "not_found")


@pytest.mark.parametrize("text", ["%FF", "%00", "%C0%AF", "%ED%A0%80", "%zz"])
def test_a_query_that_is_no_text_finds_nothing_or_is_refused(served: Served, text: str) -> None:
    assert served.ask("GET", f"/patients?limit=5&q={text}")[0] in (200, 422)
    assert served.ask("GET", f"/patients?limit=5&{text}=1")[0] == 422


def test_http_1_0_needs_no_host(served: Served) -> None:
    """HAProxy's `option httpchk` asks so by default."""
    assert served.bytes(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 OK\r\n")
    bearer = f"Authorization: Bearer {served.token}\r\n\r\n".encode()
    stream = served.bytes(b"GET /reports HTTP/1.0\r\n" + bearer)
    assert b"transfer-encoding" not in stream  # chunks came with HTTP/1.1
    assert stream.endswith(b"]")


def test_a_header_with_underscores_is_not_read_as_one_with_hyphens(served: Served) -> None:
    answer = served.raw("GET /healthz", b"", "X-Request-ID: mine", "X_Request_ID: theirs")
    assert b"x-request-id: mine" in answer
    assert b"theirs" not in served.raw("GET /healthz", b"", "X_Request_ID: theirs")


def test_a_browser_of_ours_may_read_a_refusal(served: Served) -> None:
    origin = "http://localhost:3000"
    head = f"POST /login HTTP/1.1\r\nOrigin: {origin}\r\nTransfer-Encoding: gzip, chunked\r\n".encode() + HOST
    assert f"access-control-allow-origin: {origin}".encode() in served.bytes(
        head + b"Connection: close\r\n\r\n0\r\n\r\n"
    )


# --- Processes ---


def test_liveness_answers_while_no_thread_is_free(served: Served) -> None:
    port = int(served.environment["HEALTH_PORT"])
    body = json.dumps(PATIENT)
    head = (
        f"POST /patients HTTP/1.1\r\nAuthorization: Bearer {served.token}\r\n{JSON}\r\nContent-Length: {len(body)}\r\n"
    )
    writer = sqlite3.connect(served.database, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")  # as a COMMIT that hangs
    try:
        with ExitStack() as lines:
            for _ in range(90):
                lines.enter_context(served.connect()).sendall(head.encode() + HOST + b"\r\n" + body.encode())
            time.sleep(0.5)
            began = time.monotonic()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                assert json.load(answer) == {"status": "ok"}
            assert time.monotonic() - began < 1
    finally:
        writer.execute("ROLLBACK")
        writer.close()


class Writers:
    """Clients that create patients until they are told to stop, and remember which were acknowledged."""

    def __init__(self, served: Served, count: int = 8) -> None:
        self.acknowledged: list[str] = []
        self.failures: list[object] = []
        self._ends = False
        self._served = served
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(count)]

    def __enter__(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        for thread in self._threads:
            thread.join()

    def _write(self, writer: int) -> None:
        number = 0
        while not self._ends:
            name = f"w{writer}n{number}"
            number += 1
            try:
                answered, _ = self._served.ask("POST", "/patients", {**PATIENT, "last_name": name})
                self.acknowledged.append(name) if answered == 201 else self.failures.append(answered)
            except (OSError, IndexError) as error:  # no server, or no answer
                self.failures.append(error)
                time.sleep(0.02)

    def lost(self) -> set[str]:
        stored = {name for (name,) in self._served.sql("SELECT last_name FROM patients")}
        return set(self.acknowledged) - stored


def test_sigterm_under_a_load_of_writes_loses_nothing_that_was_acknowledged(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty) as served:
        served.sign_in()
        with Writers(served) as writers:
            until(lambda: len(writers.acknowledged) > 30, 20)
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(20) == 0
        assert not (tmp_path / "hosi.db-wal").exists()  # a copy of the one file has all
        assert writers.lost() == set()
        assert "panicked" not in served.said()


def test_a_reload_is_seen_by_no_client_and_a_killed_worker_is_replaced(tmp_path: Path, empty: Path) -> None:
    def read_until(over: threading.Event) -> int:
        """Reads over a kept connection."""
        connection, count = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20), 0
        while not over.is_set():
            connection.request("GET", "/healthz")  # on a new connection, if the last answer said that it ends
            with connection.getresponse() as answer:
                assert (answer.status, answer.read()) == (200, alive)
            count += 1
            time.sleep(0.002)  # the machine has other work, too
        connection.close()
        return count

    with serving(tmp_path, empty, WEB_CONCURRENCY="2") as served, ThreadPoolExecutor(8) as readers:
        served.sign_in()
        alive = served.raw("GET /healthz").partition(b"\r\n\r\n")[2]
        first, over = served.workers(), threading.Event()
        assert len(first) == 2
        counts = [readers.submit(read_until, over) for _ in range(8)]
        with Writers(served, 2) as writers:
            served.process.send_signal(signal.SIGHUP)
            until(lambda: len(served.workers()) == 2 and not set(served.workers()) & set(first), 40)
        over.set()
        assert all(count.result() > 30 for count in counts)
        assert writers.failures == []
        assert writers.lost() == set()
        second = served.workers()
        os.kill(second[0], signal.SIGKILL)
        until(lambda: len(served.workers()) == 2 and second[0] not in served.workers(), 10)
        until(served.answers, 10)


def test_a_worker_that_is_replaced_takes_no_new_connection_in_its_last_second(tmp_path: Path, empty: Path) -> None:
    """Whatever it takes then, it may close before it reads the request."""
    with serving(tmp_path, empty) as served:
        [first] = served.workers()
        served.process.send_signal(signal.SIGHUP)
        until(lambda: len(served.workers()) == 2, 10)
        last_answers = 0
        while first in served.workers():
            with served.connect() as line:
                line.sendall(b"GET /healthz HTTP/1.1\r\nHost: clinic.test\r\n\r\n")
                last_answers += b"connection: close" in line.recv(4096).lower()
        assert last_answers <= 1  # one may have been under way


def test_connections_wait_for_the_worker_that_replaces_a_killed_one(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty) as served:
        [worker] = served.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{worker}").exists(), 10)
        assert served.raw("GET /healthz").startswith(b"HTTP/1.1 200")


def test_no_worker_is_given_away_for_one_that_would_not_start(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty) as served:
        served.sign_in()
        [worker] = served.workers()
        served.sql("UPDATE clinic SET timezone = 'Africa/Nairobi'")  # the setting is UTC
        served.process.send_signal(signal.SIGHUP)
        until(lambda: "No worker is replaced" in served.said(), 20)
        assert "TIMEZONE is UTC, but the times in this database were entered under Africa/Nairobi." in served.said()
        assert served.answers()
        assert served.workers() == [worker]

        os.kill(worker, signal.SIGKILL)  # its place stays empty until the fault is mended
        until(lambda: served.said().count("No worker is replaced") == 2, 20)
        served.sql("UPDATE clinic SET timezone = 'UTC'")
        until(lambda: served.workers() not in ([], [worker]), 20)
        assert served.raw("GET /healthz").startswith(b"HTTP/1.1 200")


def test_a_worker_that_dies_while_it_is_about_to_be_replaced_ends_no_server(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty) as served:
        [worker] = served.workers()
        served.process.send_signal(signal.SIGHUP)
        until(lambda: "HUP signal received" in served.said(), 10)
        os.kill(worker, signal.SIGKILL)
        until(lambda: "Stopped old worker-1" in served.said(), 20)
        assert served.answers()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0  # granian ends with 1 in what it takes for a loop of crashes


def test_a_server_that_waits_for_its_database_can_be_stopped(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty) as served:
        with closing(sqlite3.connect(served.database, isolation_level=None)) as holder:
            holder.execute("PRAGMA locking_mode=EXCLUSIVE")
            holder.execute("BEGIN EXCLUSIVE")
            served.process.send_signal(signal.SIGHUP)
            until(lambda: "HUP signal received" in served.said(), 10)
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(5) == 0
        assert "Respawning" not in served.said()


def test_a_killed_server_leaves_no_worker_and_the_next_one_takes_its_unix_socket(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty, HOST=f"unix:{tmp_path}/hosi.sock") as served:
        assert served.ask("GET", "/readyz")[0] == 200
        [worker] = served.workers()
        served.process.kill()
        served.process.wait()
        until(lambda: not Path(f"/proc/{worker}").exists(), 10)
        served.log.close()
        assert (tmp_path / "hosi.sock").is_socket()
        served.start()
        assert served.ask("GET", "/readyz")[0] == 200


def test_it_listens_on_ipv6(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty, HOST="::1") as served:
        assert served.ask("GET", "/readyz")[0] == 200


def test_a_port_that_is_taken_ends_the_start_with_a_sentence(tmp_path: Path, empty: Path, served: Served) -> None:
    ended = subprocess.run(
        [sys.executable, "serve.py"], cwd=ROOT, env=served.environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode != 0
    assert f"The server cannot listen on 127.0.0.1 port {served.port}: Address already in use." in ended.stderr


# --- Figures ---


def counted(served: Served, route: str) -> float:
    """How many requests for this route all workers together have answered."""
    text = served.raw("GET /metrics").decode()
    found = re.findall(r"^hosi_request_seconds_count\{(.*)\} (\S+)$", text, re.MULTILINE)
    return sum(float(value) for labels, value in found if f'route="{route}"' in labels)


def shared_folder(served: Served) -> Path:
    """The folder that the processes of the server share."""
    [file] = Path(tempfile.gettempdir()).glob(f"hosi-server-*/counter_{served.workers()[0]}.db")
    return file.parent


def test_figures_add_up_over_workers_through_a_reload_and_a_kill(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty, WEB_CONCURRENCY="2") as served:
        for _ in range(40):
            served.raw("GET /docs")
        assert counted(served, "/docs") == 40
        first = served.workers()
        os.kill(first[0], signal.SIGKILL)
        until(lambda: len(served.workers()) == 2 and first[0] not in served.workers(), 10)
        until(served.answers, 10)
        served.raw("GET /docs")
        assert counted(served, "/docs") == 41
        time.sleep(6)  # a worker that ends soon after the last one did is taken for a crash
        second = served.workers()
        served.process.send_signal(signal.SIGHUP)
        until(lambda: len(served.workers()) == 2 and not set(served.workers()) & set(second), 40)
        served.raw("GET /docs")
        assert counted(served, "/docs") == 42
        folder = shared_folder(served)
        assert {int(path.stem.rpartition("_")[2]) for path in folder.glob("*.db")} == {0, *served.workers()}
    assert not folder.exists()


@pytest.mark.parametrize("after_the_rename", [False, True])
def test_a_kill_while_dead_workers_are_added_up_loses_and_doubles_nothing(
    tmp_path: Path, empty: Path, after_the_rename: bool
) -> None:
    with serving(tmp_path, empty, WEB_CONCURRENCY="2") as served:
        for _ in range(40):
            served.raw("GET /docs")
        folder = shared_folder(served)
        dead = next(folder.glob("histogram_*.db"))  # one worker may have got all requests
        pid = int(dead.stem.rpartition("_")[2])
        os.kill(pid, signal.SIGKILL)
        until(lambda: len(served.workers()) == 2 and pid not in served.workers(), 10)
        (folder / "histogram_0.merged").write_text(dead.name)
        shutil.copy(dead, folder / ("histogram_0.db" if after_the_rename else "histogram_0.draft"))
        until(served.answers, 10)
        assert counted(served, "/docs") == 40
        assert counted(served, "/docs") == 40
        assert not dead.exists()
        assert not list(folder.glob("*.merged"))


# --- Draining ---


def is_ready(served: Served) -> bool:
    return served.ask("GET", "/readyz")[0] == 200


def ends_connection(served: Served) -> bool:
    """Return whether the server ends a connection that the client would keep."""
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)) as kept:
        kept.request("GET", "/healthz")
        with kept.getresponse() as answer:
            return answer.getheader("Connection") == "close"


def test_a_server_that_drains_is_not_ready_and_serves_on(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty, DRAIN_SECONDS="3") as served:
        served.sign_in()
        assert is_ready(served)
        assert not ends_connection(served)
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        until(lambda: not is_ready(served), 2)
        assert served.ask("GET", "/readyz")[1]["msg"] == "This server is about to stop."
        assert served.ask("POST", "/patients", PATIENT)[0] == 201
        assert ends_connection(served)
        assert served.process.wait(20) == 0
        assert time.monotonic() - began > 3


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_draining(tmp_path: Path, empty: Path, again: signal.Signals) -> None:
    with serving(tmp_path, empty, DRAIN_SECONDS="60") as served:
        served.process.send_signal(signal.SIGTERM)
        until(lambda: not is_ready(served), 2)
        served.process.send_signal(again)
        assert served.process.wait(20) == 0


def test_a_server_that_was_killed_while_it_drained_starts_ready(tmp_path: Path, empty: Path) -> None:
    with serving(tmp_path, empty, DRAIN_SECONDS="60") as served:
        served.process.send_signal(signal.SIGTERM)
        until(lambda: not is_ready(served), 2)
        [worker] = served.workers()
        folder = shared_folder(served)
        served.process.kill()
        served.process.wait()
        until(lambda: not Path(f"/proc/{worker}").exists(), 10)
        served.log.close()
        served.start()
        assert is_ready(served)
        assert not folder.exists()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(20) == 0
