"""A load of requests over kept connections: how many are answered in a second, and how long each takes.

    python bench/load.py PORT TOKEN [CONNECTIONS] [SECONDS]     # nine reads of a patient, then a write

One thread and one epoll, so that the load takes little of the cores that the server needs.
"""

import json
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count


@dataclass
class Load:
    """What came of a load."""

    seconds: float
    times: list[float] = field(default_factory=list)  # seconds of each request
    failures: list[bytes] = field(default_factory=list)  # heads of answers that are no success

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.times) / self.seconds

    def percentile(self, of: float) -> float:
        """Return milliseconds: 50 is the median."""
        return sorted(self.times)[int(len(self.times) * of / 100)] * 1000


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self._answer = b""
        self._length = -1

    def send(self, request: bytes) -> None:
        self._answer, self._length, self.sent = b"", -1, time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """Return the head of the answer once all of the answer is there."""
        piece = self.socket.recv(1 << 18)
        if not piece:
            raise ConnectionError("the server closed a connection")
        self._answer += piece
        if self._length < 0:
            head, separator, _ = self._answer.partition(b"\r\n\r\n")
            if not separator:
                return None
            _, _, after = head.lower().partition(b"content-length: ")
            self._length = len(head) + 4 + int(after.split(b"\r\n")[0])
        return self._answer[:400] if len(self._answer) >= self._length else None


def run(port: int, requests: Callable[[], bytes], connections: int, seconds: float) -> Load:
    """Send requests over every connection, the next one once the last is answered."""
    load, selector = Load(seconds), selectors.DefaultSelector()
    lines = [_Connection(port) for _ in range(connections)]
    for line in lines:
        selector.register(line.socket, selectors.EVENT_READ, line)
        line.send(requests())
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        for key, _ in selector.select(end - now):
            if head := key.data.receive():
                load.times.append(time.perf_counter() - key.data.sent)
                if not head.startswith(b"HTTP/1.1 2"):
                    load.failures.append(head)
                key.data.send(requests())
    for line in lines:
        line.socket.close()
    selector.close()
    return load


def read_of(path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def write_to(path: str, token: str, body: dict[str, object]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content


def mix(token: str, patients: int = 500, write_every: int = 10) -> Callable[[], bytes]:
    """Return a source of requests: reads of patients, and every tenth creates a patient."""

    def requests() -> Iterator[bytes]:
        for number in count():
            if number % write_every == write_every - 1:
                body = {"first_name": "Amina", "last_name": f"N{number}", "phone_number": "0712345678"}
                yield write_to("/patients", token, body)
            else:
                yield read_of(f"/patient/{number % patients + 1}", token)

    return requests().__next__


def rate(port: int, path: str, token: str, connections: int, seconds: float = 3) -> float:
    """Return how many reads of this address are answered in a second. wrk, if installed, takes less of the cores."""
    if shutil.which("wrk"):
        bearer = f"Authorization: Bearer {token}"
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:.0f}s",
            "-H",
            bearer,
            f"http://127.0.0.1:{port}{path}",
        ]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in said:
            raise SystemExit(said)
        return float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    request = read_of(path, token)
    load = run(port, lambda: request, connections, seconds)
    if load.failures:
        raise SystemExit(f"{path}: {load.failures[0]!r}")
    return load.rate


@dataclass
class Read:
    """A whole answer: seconds until its first byte, and until its last."""

    first: float
    whole: float


def stream(port: int, path: str, token: str) -> Read:
    """Read an answer in chunks."""
    with socket.create_connection(("127.0.0.1", port)) as line:
        began = time.perf_counter()
        line.sendall(read_of(path, token))
        tail = line.recv(1 << 20)
        first = time.perf_counter() - began
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            piece = line.recv(1 << 20)
            if not piece:
                raise ConnectionError("the answer broke off")
            tail = tail[-10:] + piece
        return Read(first, time.perf_counter() - began)


if __name__ == "__main__":
    port, token, *rest = sys.argv[1:]
    found = run(int(port), mix(token), *(map(int, [*rest, 64, 10][:2])))  # type: ignore[arg-type]
    p50, p99, mean = found.percentile(50), found.percentile(99), statistics.mean(found.times) * 1000
    print(f"{found.rate:.0f} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms ({p99 / p50:.1f} x), mean {mean:.1f} ms")
    print(f"{len(found.failures)} failures", *found.failures[:1])
