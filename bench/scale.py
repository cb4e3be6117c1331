"""Measures what a large clinic waits for: 1,000,000 patients, 2,000,000 appointments and their history.

    DATABASE_URL=postgresql://… python bench/scale.py [--patients 1000000] [--entries 8220] [--rounds 3]

Makes a database of its own, fills it by SQL, and writes an entry of the history for each record by the server's own
code. That takes about 15 minutes. Then it verifies the history as a whole, writes as many entries as a clinic does in
some days, verifies what came since, counts, and reloads the server under a load. Exit code 1 if a mark is missed.
"""

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app import create_app  # noqa: E402
from bench.rolling import Load  # noqa: E402
from bench.server import Server, database  # noqa: E402
from testing.fill import fill, fill_history  # noqa: E402

Result = TypeVar("Result")
TOTALS = ("/patients?limit=100&total=true", "/appointment?limit=100&total=true")
missed: list[str] = []


def told(what: str, figure: float, unit: str, most: float | None = None, more: str = "") -> None:
    """Print a figure with the load of the machine, and note if it misses its mark."""
    if most is not None and figure > most:
        missed.append(what)
    mark = "" if most is None else f", at most {most:g}"
    print(f"{what}: {figure:.2f} {unit}{mark}{more} (load {os.getloadavg()[0]:.1f})", flush=True)


def timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """Return what `work` returns, its seconds, and the seconds of CPU that its processes took."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result, time.perf_counter() - began, cpu


def command(server: Server, what: str, *arguments: str, most: float | None = None) -> str:
    """Run a `flask` command that must succeed, print its time, and return its last line."""
    (code, said), seconds, cpu = timed(lambda: server.flask(*arguments))
    assert code == 0, said
    told(what, seconds, "s", most, f", {cpu:.2f} s of CPU")
    return said.strip().splitlines()[-1]


def fill_up(server: Server, patients: int) -> None:
    names = ("FLASK_ENV", "DATABASE_URL", "INSTANCE_PATH")  # its folder has the AUDIT_KEY
    app = create_app({name: server.environment[name] for name in names})
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
        fill(engine, patients=patients, appointments=2 * patients)
        print(f"{fill_history(engine):,} entries written by the filling", flush=True)
        engine.dispose()


def write_entries(server: Server, token: str, entries: int, patients: int) -> None:
    """Change records, with eight clients."""

    def change(number: int) -> int:
        body = {"diagnosis": f"Malaria {number}"}
        return server.call("PATCH", f"/patient/{number * 7919 % patients + 1}", body, token=token).status

    with ThreadPoolExecutor(8) as clients:
        assert set(clients.map(change, range(entries))) == {200}


def count(server: Server, token: str) -> None:
    """Ask for pages with totals."""
    headers = {"Authorization": f"Bearer {token}"}
    for path in TOTALS:
        took = []
        for _ in range(30):
            began = time.perf_counter()
            answer = server.http.request("GET", f"http://127.0.0.1:{server.port}{path}", headers=headers)
            took.append(time.perf_counter() - began)
            assert answer.status == 200, answer.data
        names = ("X-Total-Count", "X-Total-Count-Estimated")
        said = "; ".join(f"{name}: {answer.headers[name]}" for name in names if name in answer.headers)
        told(f"GET {path}, median", statistics.median(took) * 1000, "ms", 50, f", {said}")


def reload_under_load(server: Server, token: str, seconds: float) -> None:
    """Reload the server while clients read and write, each request on a new connection or, by wrk, on a kept one."""
    address = f"http://127.0.0.1:{server.port}"
    load, kept = Load(address, token), None
    load.start()
    if shutil.which("wrk"):
        options = ["-t1", "-c8", f"-d{3 * seconds:.0f}s", "-H", f"Authorization: Bearer {token}"]
        kept = subprocess.Popen(["wrk", *options, f"{address}/patient/7"], stdout=subprocess.PIPE, text=True)
    time.sleep(seconds)
    server.reload()
    time.sleep(seconds)
    report = kept.communicate()[0] if kept else ""
    load.stop()
    there = server.sql("SELECT last_name FROM patients WHERE id > :id", id=load.newest - 2 * len(load.acknowledged))
    lost = len(set(load.acknowledged) - {name for (name,) in there})
    faults = re.findall(r"(?:Socket errors|Non-2xx).*", report)
    by_wrk = re.findall(r"(\d+) requests in", report)
    told("failures of a reload under load", load.bad() + lost + len(faults), "", 0)
    print(f"  {sum(load.seen.values()):,} requests, {dict(load.seen)}, {lost} lost; wrk: {by_wrk} {faults}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--patients", type=int, default=1_000_000)
    options.add_argument("--entries", type=int, default=8220, help="since the checkpoint")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=5, help="of load before and after a reload")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, database(folder, "scale") as url:
        server = Server(url, folder)
        try:
            server.start()
            _, token = server.sign_up("admin")
            fill_up(server, given.patients)
            for _ in range(given.rounds):
                checkpoint = command(server, "flask audit verify", "audit", "verify", "--checkpoint", most=70)
            write_entries(server, token, given.entries, given.patients)
            for _ in range(given.rounds):
                command(server, "flask audit verify --since", "audit", "verify", "--since", checkpoint, most=2)
                command(server, "flask audit --help, which is the start alone", "audit", "--help")
            count(server, token)
            for _ in range(given.rounds):
                reload_under_load(server, token, given.seconds)
        finally:
            server.stop()
    print("missed:", ", ".join(dict.fromkeys(missed)) or "nothing")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
