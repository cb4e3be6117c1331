"""Holds up the real server by slow clients for a minute each, and measures what other requests wait.

    python bench/slow_clients.py [--seconds 60] [--clients 20]

Without nginx: unfinished headers, unfinished bodies, readers that read nothing of 80 MB, as a stream and as a page.
Meanwhile reads, writes and /healthz must be answered within a second. Exit code 1 if one is not.
"""

import argparse
import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from server import Server, server

PATIENT = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
ASKED = (("GET", "/healthz", None), ("GET", "/patient/1", None), ("POST", "/patients", PATIENT))
MOST = 1.0  # seconds


def memory(at: Server) -> int:
    """Return the resident memory of the workers, in MB."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in at.workers()]
    return sum(pages) * 4096 >> 20


def fill(at: Server) -> None:
    """Store 80 MB of patients: a page of 500 has 20 MB."""
    columns = "created_at, updated_at, version, first_name, last_name, phone_number, status, sex"
    at.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
        f" INSERT INTO patients (mrn, doctor_summary, diagnosis, {columns})"
        f" SELECT 'X' || i, :text, :text, {columns} FROM patients, n WHERE id = 1",
        text="x" * 20_000,  # the longest that a client may send
    )


@contextlib.contextmanager
def held(at: Server, sent: bytes, clients: int) -> Iterator[None]:
    """Keep up this many connections that send these bytes and nothing more, and that read nothing."""
    with contextlib.ExitStack() as lines:
        for _ in range(clients):
            lines.enter_context(socket.create_connection(("127.0.0.1", at.port))).sendall(sent)
        yield


def trial(at: Server, name: str, sent: bytes, token: str, seconds: float, clients: int) -> float:
    """Return the longest time that another request took."""
    worst, asked, most = 0.0, 0, memory(at)
    before = most
    end = time.monotonic() + seconds
    with held(at, sent, clients):
        while time.monotonic() < end:
            for method, path, body in ASKED:
                answer = at.call(method, path, body, token)
                assert answer.status in (200, 201), answer
                worst, asked = max(worst, answer.seconds), asked + 1
            at.http.clear()  # each round by new connections: to every worker
            most = max(most, memory(at))
            time.sleep(0.05)
    print(
        f"{name}: {asked} other requests, the longest {worst * 1000:.0f} ms; memory {before} to {most} MB", flush=True
    )
    return worst


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--clients", type=int, default=20)
    given = options.parse_args()
    with server() as at:
        _, token = at.sign_up("admin")
        at.call("POST", "/patients", PATIENT, token)
        fill(at)
        head = f"HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
        body = json.dumps(PATIENT)[:20]
        post = f"POST /patients {head}Content-Type: application/json\r\nContent-Length: 90\r\n\r\n{body}"
        trials = {
            "unfinished headers": f"GET /patients {head}",
            "unfinished bodies": post,
            "readers that read nothing of a stream": f"GET /patients {head}\r\n",
            "readers that read nothing of a page": f"GET /patients?limit=500 {head}\r\n",
        }
        worst = max(
            trial(at, name, sent.encode(), token, given.seconds, given.clients) for name, sent in trials.items()
        )
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
