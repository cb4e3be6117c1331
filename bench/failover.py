"""Takes the primary PostgreSQL away under a load of writes, promotes its standby, and looks for lost writes.

    python bench/failover.py                         # the primary is killed (kill -9), a synchronous standby takes over
    python bench/failover.py --silently              # the primary's network goes away without a word (needs root)
    python bench/failover.py --patroni               # Patroni and etcd notice and promote, instead of this program
    python bench/failover.py --asynchronous --lag 2  # the standby is two seconds behind: writes are lost

Two nodes run behind nginx, and reach PostgreSQL through PgBouncer. Each writer sends a patient with an Idempotency-Key
until somebody acknowledges it. Exit code 1 if an acknowledged write is lost (but for `--asynchronous`), if a write is
there twice, or if the history is not whole.
"""

import argparse
import itertools
import os
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import urllib3
from clusters import (
    AWAY,
    NAME,
    Nginx,
    PatroniMember,
    PgBouncer,
    Postgres,
    etcd,
    missing_tools,
    network_namespace,
    run,
    until,
)

from server import Server


@dataclass
class Load:
    """Writers, each of which sends a patient until it is acknowledged, then the next one."""

    address: str
    token: str
    writers: int = 8
    acknowledged: dict[str, float] = field(default_factory=dict)  # mark: when
    seen: Counter[str] = field(default_factory=Counter)  # what clients were answered
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._write) for _ in range(self.writers)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        http = urllib3.PoolManager(retries=False, timeout=30)
        while not self._stop.is_set():
            mark = secrets.token_hex(8)
            while not self._is_taken(http, mark) and not self._stop.is_set():
                time.sleep(0.2)

    def _is_taken(self, http: urllib3.PoolManager, mark: str) -> bool:
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": mark}
        body = {"first_name": "Amina", "last_name": mark, "phone_number": "0712 345 678"}
        try:
            answer = http.request("POST", f"{self.address}/patients", json=body, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            self.seen[type(error).__name__] += 1
            return False
        self.seen[str(answer.status)] += 1
        if answer.status == 201:
            self.acknowledged[mark] = time.monotonic()
        return answer.status == 201

    def longest_silence(self) -> float:
        """Return the longest time without an acknowledgement, in seconds."""
        times = sorted(self.acknowledged.values())
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


def clinic(folder: Path, bouncer: PgBouncer, stack: ExitStack) -> tuple[list[Server], Nginx]:
    """Start two nodes and nginx in front of them."""
    url = f"postgresql://postgres@127.0.0.1:{bouncer.port}/{NAME}"
    nodes = [Server(url, str(folder), WEB_CONCURRENCY="1") for _ in range(2)]
    for node in nodes:
        stack.callback(node.stop)
        node.start()
    nginx = Nginx(folder, [node.port for node in nodes])
    stack.callback(nginx.stop)
    nginx.start()
    return nodes, nginx


def lost_and_doubled(load: Load, server: Postgres) -> tuple[int, int]:
    """Return how many acknowledged patients are not there, and how many are there twice."""
    there = Counter(str(row[0]) for row in server.query("SELECT last_name FROM patients", NAME))
    return len(load.acknowledged.keys() - there.keys()), sum(count > 1 for count in there.values())


def start_pair(primary: Postgres, standby: Postgres, given: argparse.Namespace) -> None:
    """Start both, and return when the standby follows."""
    if isinstance(primary, PatroniMember):
        primary.start()
        until(primary.leads)
    else:
        primary.make(synchronous=not given.asynchronous)
        primary.start()
        standby.copy(primary)
    standby.start()
    state = "sync_state = 'sync'" if not given.asynchronous else "state = 'streaming'"
    until(lambda: primary.query(f"SELECT 1 FROM pg_stat_replication WHERE {state}"), 60)


def fail_over(given: argparse.Namespace, folder: Path, stack: ExitStack) -> int:
    link = ""
    if given.patroni:
        port = stack.enter_context(etcd(folder))
        primary, standby = (PatroniMember(folder / name, port) for name in ("primary", "standby"))
    elif given.silently:
        namespace, link = stack.enter_context(network_namespace())
        primary, standby = Postgres(folder / "primary", AWAY, namespace), Postgres(folder / "standby")
    else:
        primary, standby = (Postgres(folder / name) for name in ("primary", "standby"))
    for server in (primary, standby):
        stack.callback(server.kill)
    start_pair(primary, standby, given)
    primary.query(f"CREATE DATABASE {NAME}")
    bouncer = PgBouncer(folder)
    stack.callback(bouncer.stop)
    bouncer.start(primary)
    nodes, nginx = clinic(folder, bouncer, stack)
    _, token = nodes[0].sign_up("admin")
    load = Load(f"http://127.0.0.1:{nginx.port}", token)
    load.start()
    time.sleep(given.seconds)
    if given.lag:
        standby.query("ALTER SYSTEM SET primary_conninfo = ''")
        standby.query("SELECT pg_reload_conf()")
        time.sleep(given.lag)
    _, head = nodes[0].flask("audit", "head")
    began, before = time.monotonic(), len(load.acknowledged)
    if given.silently:
        run("ip", "link", "set", link, "down")
    else:
        primary.kill()
    if not given.patroni:
        time.sleep(given.notice)
    standby.promote()
    promoted = time.monotonic()
    bouncer.point_at(standby)
    until(lambda: any(at > promoted for at in [*load.acknowledged.values()]), 120)
    time.sleep(given.seconds)
    load.stop()
    lost, doubled = lost_and_doubled(load, standby)
    code, said = nodes[0].flask("audit", "verify", "--head", head.strip().splitlines()[-1])
    print(
        f"{'asynchronous' if given.asynchronous else 'synchronous'}, "
        f"{'the network gone' if given.silently else 'kill -9'}: {len(load.acknowledged):,} acknowledged "
        f"({before:,} before), {lost} lost, {doubled} doubled, {load.longest_silence():.1f} s without an "
        f"acknowledgement, {promoted - began:.1f} s of them until the standby was promoted"
    )
    print("clients saw: " + ", ".join(f"{what} x {count:,}" for what, count in load.seen.most_common()))
    print(f"audit verify --head: {said.strip()}")
    return int(doubled > 0 or (not given.asynchronous and (lost > 0 or code != 0)))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--asynchronous", action="store_true")
    options.add_argument("--lag", type=float, default=0, help="seconds by which an asynchronous standby lags")
    options.add_argument("--silently", action="store_true")
    options.add_argument("--patroni", action="store_true")
    options.add_argument("--seconds", type=float, default=10, help="of load before and after")
    options.add_argument("--notice", type=float, default=1, help="seconds until somebody promotes the standby")
    given = options.parse_args()
    tools = ("nginx", "pgbouncer", *(["patroni", "etcd"] if given.patroni else []))
    if missing := missing_tools(*tools):
        print(f"This needs {', '.join(missing)}: apt-get install postgresql nginx pgbouncer patroni etcd-server")
        return 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, ExitStack() as stack:
        os.chmod(name, 0o777)  # the user postgres writes into it, too
        return fail_over(given, Path(name), stack)


if __name__ == "__main__":
    sys.exit(main())
