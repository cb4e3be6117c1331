"""What a stranger may cost: CPU, bytes, memory and waiting, by requests that are refused.

    python bench/strangers.py                                     # on SQLite
    DATABASE_URL=postgresql://... python bench/strangers.py       # on that server, in a database of its own

Against the real server with two workers, and through nginx, where it is installed, with the settings of
docs/deployment.md. Exit code 1 if a refused request costs more than 5 ms of CPU and 40 ms for each MB, if its answer is
larger than 16 KB or cannot be read, if memory grows by 60 MB, or if `/healthz` takes a second.
"""

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import urllib3

from server import ROOT, Server, server

CPU, CPU_PER_MB = 5.0, 40.0  # ms
LONGEST_ANSWER = 16 * 1024  # bytes
GROWTH = 60.0  # MB
SLOWEST = 1.0  # seconds, of /healthz
SLOW_CLIENTS = 20
MB = 2**20


class Strangers:
    def __init__(self, at: Server) -> None:
        self.at = at
        self.faults: list[str] = []
        self.admin_id, self.token = at.sign_up("admin")
        patient = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
        self.patient = at.call("POST", "/patients", patient, self.token).body["id"]
        self.workers = at.workers()

    # --- measuring ---

    def cpu(self) -> float:
        """Milliseconds of CPU that the workers have taken, all threads together."""
        tasks = [task for pid in self.workers for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6

    def memory(self) -> float:
        """MB of resident memory of all workers."""
        status = "".join(Path(f"/proc/{pid}/status").read_text() for pid in self.workers)
        return sum(map(int, re.findall(r"VmRSS:\s+(\d+)", status))) / 1024

    def check(self, is_right: bool, line: str) -> None:
        print(line, "" if is_right else "  WRONG", flush=True)
        if not is_right:
            self.faults.append(line)

    @contextmanager
    def healthy(self, what: str, port: int | None = None) -> Iterator[None]:
        """Ask for `/healthz` all the time that the block takes, and print how long the slowest answer took."""
        ended, times = threading.Event(), [0.0]

        def ask() -> None:
            while not ended.wait(0.05):
                began = time.perf_counter()
                try:
                    with urllib3.PoolManager(retries=False, timeout=10) as http:
                        http.request("GET", f"http://127.0.0.1:{port or self.at.port}/healthz")
                except urllib3.exceptions.HTTPError:
                    times.append(10.0)
                times.append(time.perf_counter() - began)

        asking = threading.Thread(target=ask)
        asking.start()
        yield
        ended.set()
        asking.join()
        self.check(max(times) < SLOWEST, f"{what}: slowest /healthz of {len(times) - 1}: {max(times) * 1000:.0f} ms")

    # --- one refused request ---

    def refused(self, name: str, method: str, path: str, body: bytes | None, kind: str, times: int = 20) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        sizes, statuses = {0}, set[int]()

        def send() -> None:
            address = f"http://127.0.0.1:{self.at.port}{path}"
            try:
                answer = self.at.http.request(method, address, headers=headers, body=body)
            except urllib3.exceptions.HTTPError:  # the connection broke before the answer could be read
                statuses.add(0)
                return
            sizes.add(len(answer.data))
            statuses.add(answer.status)

        send()
        before = self.cpu()
        for _ in range(times):
            send()
        cost = (self.cpu() - before) / times
        size = len(body or path) / MB
        right = cost <= CPU + CPU_PER_MB * size and max(sizes) <= LONGEST_ANSWER and min(statuses) >= 400
        status = "/".join(map(str, sorted(statuses)))
        line = f"{name:38} {status}: {size * 1024:8.1f} KB in, {max(sizes):6} bytes out, {cost:6.1f} ms of CPU"
        self.check(right, line)

    def requests(self) -> None:
        many = 700_000  # bytes, near to the limit of the largest body
        keys = compact({str(n): 1 for n in range(200_000)})
        wide = json.dumps({str(n): 1 for n in range(many // 12)}).encode()
        near = json.dumps({str(n): 1 for n in range(1_500)}).encode()
        nested = b'{"diagnosis":[' + b"[]," * (many // 3) + b"1]}"
        escaped = b'{"diagnosis":"' + rb"\ud83d\ude00" * (many // 12) + b'"}'
        odd = json.dumps({"\1" * 99 + str(n): 1 for n in range(900)}).encode()
        patient, plain = f"/patient/{self.patient}", "application/json"
        for path in ("/login", "/signup", "/password/forgot", "/password/reset"):
            self.refused(f"POST {path}, 200,000 keys", "POST", path, keys, plain)
        self.refused("POST /login, 16 KB of keys", "POST", "/login", near[: 16 * 1024 - 2] + b"1}", plain)
        self.refused("PATCH /patient, 200,000 keys", "PATCH", patient, keys, plain)
        self.refused("PATCH /patient, 58,000 keys", "PATCH", patient, wide, plain)
        self.refused("PATCH /patient, 1,500 keys", "PATCH", patient, near, plain)
        self.refused("PATCH /patient, keys of control signs", "PATCH", patient, odd, plain)
        self.refused("PATCH /patient, nested lists", "PATCH", patient, nested, plain)
        self.refused("PATCH /patient, a text too long", "PATCH", patient, escaped, plain)
        self.refused("PATCH /patient, brackets", "PATCH", patient, b"[" * many, plain)
        pairs = "&".join(f"{n}=1" for n in range(1_000))
        self.refused("GET /patients, 1,000 parameters", "GET", f"/patients?{pairs}", None, plain)
        self.refused("GET /patients, status 900 times", "GET", "/patients?" + "status=x&" * 900, None, plain)
        self.refused("GET /patients, a long value", "GET", "/patients?q=" + "%F0%9F%98%80" * 600, None, plain)
        form = "multipart/form-data; boundary=XX"
        self.refused("POST /reports, 1,000 fields", "POST", "/reports", part("f", b"1") * 1_000, form)
        text = part("patient_id", b"1") + part("diagnosis", b"x" * many)
        self.refused("POST /reports, a long text", "POST", "/reports", text, form)

    # --- forms ---

    def forms(self) -> None:
        """Forms that are refused early. The client sends everything before it reads, as most clients do."""
        image = part("images", b"x" * 510_000, "scan.png")
        cases = {
            "998 files of 510 KB": (part("patient_id", b"1"), image, 998, 422),
            "40 files of 21 MB": (part("patient_id", b"1"), part("images", b"x" * 21 * MB, "scan.png"), 40, 413),
            "an unknown field, then 100 MB": (part("shoe_size", b"1"), image, 200, 422),
            "no token, 30 MB": (part("patient_id", b"1"), image, 60, 401),
        }
        for name, (first, piece, times, due) in cases.items():
            before, began = self.memory(), self.cpu()
            token = "" if due == 401 else self.token
            status = self.send_all_first(first, piece, times, token)
            cost, grown = self.cpu() - began, self.memory() - before
            size = len(piece) * times / MB
            right = status == due and grown < GROWTH and cost <= CPU + CPU_PER_MB * size
            line = f"{name:38} {status}: {size:8.0f} MB in, memory {grown:+4.0f} MB, {cost:6.0f} ms of CPU"
            self.check(right, line)

    def send_all_first(self, first: bytes, piece: bytes, times: int, token: str) -> int:
        """Return the status; 0 where the connection broke before the answer could be read."""
        end = b"--XX--\r\n"
        length = len(first) + len(piece) * times + len(end)
        head = (
            f"POST /reports HTTP/1.1\r\nHost: clinic.test\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
            f"Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: {length}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.at.port), timeout=60) as line:
            with suppress(ConnectionError):
                line.sendall(head.encode() + first)
                for _ in range(times):
                    line.sendall(piece)
                line.sendall(end)
            try:
                return int(line.recv(65536).split(b" ", 2)[1])
            except (ConnectionError, IndexError):
                return 0

    # --- many at once ---

    def crowd(self) -> None:
        keys = compact({str(n): 1 for n in range(200_000)})
        address = f"http://127.0.0.1:{self.at.port}/login"

        def knock() -> None:
            with suppress(urllib3.exceptions.HTTPError):
                for _ in range(10):
                    self.at.http.request("POST", address, body=keys, headers={"Content-Type": "application/json"})

        with self.healthy("twelve at once with 200,000 keys"):
            crowd = [threading.Thread(target=knock) for _ in range(12)]
            for one in crowd:
                one.start()
            for one in crowd:
                one.join()

    def slow_clients(self, port: int) -> None:
        """Clients that do not finish, and clients that do not read, through nginx."""
        patient = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
        for _ in range(200):  # an answer of 4 MB
            self.at.call("POST", "/patients", patient | {"doctor_summary": "x" * 20_000}, self.token)
        token = f"Authorization: Bearer {self.token}\r\n"
        manners = {
            "unfinished bodies": f"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n{token}\r\n{{",
            "unfinished headers": f"GET /patients HTTP/1.1\r\nHost: a\r\n{token}X-A: ",
            "readers that read nothing": f"GET /patients HTTP/1.1\r\nHost: a\r\n{token}\r\n",
        }
        for name, sent in manners.items():
            lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(SLOW_CLIENTS)]
            for line in lines:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                line.sendall(sent.encode())
            with self.healthy(f"{SLOW_CLIENTS} {name}, through nginx", port):
                time.sleep(5)
            for line in lines:
                line.close()


def compact(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def part(name: str, content: bytes, filename: str = "") -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + content + b"\r\n"


@contextmanager
def nginx(upstream: int, folder: Path) -> Iterator[int]:
    """Yield the port of an nginx with the settings of docs/deployment.md, in front of this server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    [documented] = re.findall(r"```nginx\n(server .*?)```", (ROOT / "docs/deployment.md").read_text(), re.DOTALL)
    documented = documented.replace("listen 80;", f"listen 127.0.0.1:{port};").replace(":5000;", f":{upstream};")
    settings = folder / "nginx.conf"
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    settings.write_text(
        f"pid {folder}/pid;\nerror_log {folder}/error.log;\ndaemon off;\nuser root;\nworker_processes 1;\n"
        f"events {{ worker_connections 768; }}\nhttp {{\naccess_log off;\n{temporary}{documented}}}\n"
    )
    process = subprocess.Popen(["nginx", "-e", folder / "error.log", "-c", settings])
    try:
        time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def main() -> int:
    options = argparse.ArgumentParser(description="Measure what requests cost that are refused.")
    options.add_argument("--root", type=Path, default=ROOT, help="the checkout whose code is served")
    with server(root=options.parse_args().root, WEB_THREADS="16") as at, tempfile.TemporaryDirectory() as folder:
        strangers = Strangers(at)
        strangers.requests()
        strangers.forms()
        strangers.crowd()
        if shutil.which("nginx"):
            with nginx(at.port, Path(folder)) as port:
                strangers.slow_clients(port)
        else:
            print("nginx is not installed: slow clients are left out")
        print(*strangers.faults, sep="\n")
        return int(bool(strangers.faults))


if __name__ == "__main__":
    sys.exit(main())
