"""Restarts two nodes behind nginx one by one, under a load of reads and writes, and looks for refused requests.

    python bench/rolling.py               # a migration between; each node drains, restarts; then each one reloads
    python bench/rolling.py --keepalive   # nginx keeps connections to the nodes open

Each writer sends a patient with an Idempotency-Key once, and each reader reads the newest one: nobody tries again.
Nobody tells nginx that a node stops: a connection that is refused goes to the other node. Exit code 1 if an answer is
neither 2xx nor 4xx, or an acknowledged write is lost or there twice.
"""

import argparse
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import urllib3

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.clusters import NAME, Nginx, Postgres, missing_tools, until  # noqa: E402
from bench.server import Server  # noqa: E402

DRAIN = 2  # seconds
MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9001", "{before}", None, None


def upgrade() -> None:
    op.add_column("patients", sa.Column("length", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("patients", "length")
"""


@dataclass
class Load:
    """Clients that send each request once, and count what they see."""

    address: str
    token: str
    seen: Counter[str] = field(default_factory=Counter)
    acknowledged: list[str] = field(default_factory=list)
    newest: int = 1
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, writers: int = 4, readers: int = 8) -> None:
        works = [self._write] * writers + [self._read] * readers
        self._threads = [threading.Thread(target=self._go_on, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def bad(self) -> int:
        """Return how many requests had no answer, or one but 2xx and 4xx."""
        return sum(count for what, count in self.seen.items() if not what.startswith(("2", "4")))

    def _go_on(self, work: Callable[[urllib3.PoolManager], int]) -> None:
        http = urllib3.PoolManager(retries=False, timeout=30)
        while not self._stop.is_set():
            try:
                self.seen[str(work(http))] += 1
            except urllib3.exceptions.HTTPError as error:
                self.seen[type(error).__name__] += 1
            time.sleep(0.01)

    def _write(self, http: urllib3.PoolManager) -> int:
        mark = secrets.token_hex(8)
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": mark}
        body = {"first_name": "Amina", "last_name": mark, "phone_number": "0712 345 678"}
        answer = http.request("POST", f"{self.address}/patients", json=body, headers=headers)
        if answer.status == 201:
            self.acknowledged.append(mark)
            self.newest = answer.json()["id"]
        return answer.status

    def _read(self, http: urllib3.PoolManager) -> int:
        headers = {"Authorization": f"Bearer {self.token}"}
        return http.request("GET", f"{self.address}/patient/{self.newest}", headers=headers).status


def newer_migrations(folder: Path) -> Path:
    """Return a folder of migrations with one more after ours, as a newer version has."""
    newer = folder / "migrations"
    shutil.copytree(ROOT / "migrations", newer, ignore=shutil.ignore_patterns("__pycache__"))
    before = max(path.name[:4] for path in newer.glob("versions/0*.py"))
    (newer / "versions" / "9001_later.py").write_text(MIGRATION.format(before=before))
    return newer


def is_ready(node: Server) -> bool:
    with urllib3.PoolManager(retries=False, timeout=2) as http:
        try:
            return http.request("GET", f"http://127.0.0.1:{node.port}/readyz").status == 200
        except urllib3.exceptions.HTTPError:
            return False


def roll(given: argparse.Namespace, folder: Path, stack: ExitStack) -> int:
    primary = Postgres(folder / "primary")
    stack.callback(primary.kill)
    primary.make(synchronous=False)
    primary.start()
    primary.query(f"CREATE DATABASE {NAME}")
    url = f"postgresql://postgres@127.0.0.1:{primary.port}/{NAME}"
    nodes = [Server(url, str(folder), WEB_CONCURRENCY="2", DRAIN_SECONDS=str(DRAIN)) for _ in range(2)]
    for node in nodes:
        stack.callback(node.stop)
        node.start()
    nginx = Nginx(folder, [node.port for node in nodes], keepalive=32 if given.keepalive else 0)
    stack.callback(nginx.stop)
    nginx.start()
    _, token = nodes[0].sign_up("admin")
    load = Load(f"http://127.0.0.1:{nginx.port}", token)
    load.start()
    time.sleep(given.seconds)

    code, said = nodes[0].flask("db", "upgrade", "--directory", str(newer_migrations(folder)))
    assert code == 0, said
    for node in nodes:
        node.terminate()  # drains, and ends what has begun
        node.start()
        until(lambda node=node: is_ready(node))  # type: ignore[misc]
        time.sleep(given.seconds)
    restarted = load.bad()
    for node in nodes:
        node.reload()
        time.sleep(given.seconds)
    load.stop()
    there = Counter(str(row[0]) for row in primary.query("SELECT last_name FROM patients", NAME))
    lost = len(set(load.acknowledged) - there.keys())
    doubled = sum(count > 1 for count in there.values())
    print(
        f"{sum(load.seen.values()):,} requests; neither 2xx nor 4xx: {restarted} during the restarts, "
        f"{load.bad() - restarted} during the reloads; {len(load.acknowledged):,} writes acknowledged, {lost} lost, "
        f"{doubled} twice"
    )
    print("clients saw: " + ", ".join(f"{what} x {count:,}" for what, count in load.seen.most_common()))
    return int(bool(load.bad() or lost or doubled))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keepalive", action="store_true")
    options.add_argument("--seconds", type=float, default=4, help="of load between two steps")
    given = options.parse_args()
    if missing := missing_tools("nginx"):
        print(f"This needs {', '.join(missing)}: apt-get install postgresql nginx")
        return 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, ExitStack() as stack:
        os.chmod(name, 0o777)  # the user postgres writes into it, too
        return roll(given, Path(name), stack)


if __name__ == "__main__":
    sys.exit(main())
