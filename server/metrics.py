"""Counts what happens, for Prometheus. Each worker counts in a file of its own, and an answer adds the files up.

serve.py sets the folder of the files before a worker imports this: prometheus-client reads it at the import.
"""

import hmac
import ipaddress
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from flask import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from server import errors, processes

try:
    import fcntl
except ImportError:  # Windows, where one process serves
    fcntl = None  # type: ignore[assignment]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PAGE = {
    "responses": {
        "200": {
            "description": "The figures, in the text format of Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    }
}
SAMPLED_EVERY = 1  # seconds
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")
DEAD = 0  # stands for the process id in the name of the file that has the counts of all dead workers

_registry = CollectorRegistry()  # of this process; it is what is shown where one process serves


def counter(name: str, what: str, label: str = "", values: Iterable[str] = ()) -> Counter:
    """Return a counter. With a label, each of its known `values` begins at 0."""
    made = Counter(name, what, [label] if label else [], registry=_registry)
    for value in values:
        made.labels(value)
    return made


_requests = Histogram(
    "hosi_request_seconds",
    "Requests, and seconds from the whole request to its answer, the wait for its turn included.",
    ["method", "route", "status"],
    buckets=BUCKETS,
    registry=_registry,
)
refused_by_gate = counter("hosi_gate_refused", "Requests that waited too long for their turn and got 503.")
tried_again = counter("hosi_transactions_tried_again", "Transactions that lost a race and were tried again.")


@cache
def _counted(method: str, route: str, status: int) -> Callable[[float], None]:
    """Return the function that counts a request. Prometheus-client itself looks for the labels with each one."""
    return _requests.labels(method, route, str(status)).observe


def count_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count a request. `route` is a rule and never a path, "" for none: each route has figures of its own."""
    _counted(method if method in METHODS else "other", route or "none", status)(seconds)


# --- What is looked at from time to time ---

_gauges: dict[str, Gauge] = {}
_readers: dict[str, Callable[[], float]] = {}
_at_scrape: dict[str, tuple[str, Callable[[], float | None]]] = {}


def sample(name: str, what: str, read: Callable[[], float]) -> None:
    """Show what `read` returns, the sum over all workers. A later `read` of the same name replaces the earlier one."""
    if name not in _gauges:
        _gauges[name] = Gauge(name, what, registry=_registry, multiprocess_mode="livesum")
    _readers[name] = read


def show(name: str, what: str, read: Callable[[], float | None]) -> None:
    """Show what `read` returns when somebody asks for the figures, if it is not None."""
    _at_scrape[name] = what, read


def start_sampling() -> None:
    """Look at the sampled figures each second, in a thread of this worker."""

    def go_on() -> None:
        while True:
            _sample()
            time.sleep(SAMPLED_EVERY)

    threading.Thread(target=go_on, name="metrics", daemon=True).start()


def _sample() -> None:
    for name, read in _readers.items():
        _gauges[name].set(read())


# --- When a chore was last done ---


def note_done(instance: Path, chore: str) -> None:
    """Note that a chore of the operator's, such as a sweep, has just ended well."""
    with suppress(OSError):  # a read-only file system: the figure is missing
        (instance / "done").mkdir(exist_ok=True)
        (instance / "done" / chore).write_text("")


def show_chores(instance: Path, chores: Iterable[str]) -> None:
    """Show for each chore how long ago it ended well on this machine. A chore that was never done has no figure."""
    for chore in chores:
        path = instance / "done" / chore
        what = f"Seconds since the last {chore} on this machine ended well."
        show(f"hosi_last_{chore}_age_seconds", what, lambda path=path: _age_of(path))  # type: ignore[misc]


def _age_of(path: Path) -> float | None:
    with suppress(OSError):
        return max(0.0, time.time() - path.stat().st_mtime)
    return None


# --- The answer ---


def check_access(request: Request, token: str) -> None:
    """Raise `Unauthorized` without the token, where one is set; else `Forbidden` unless this machine itself asks.

    A request that a proxy passed on comes from this machine, too. Its headers tell.
    """
    if token:
        given = request.headers.get("Authorization", "").partition(" ")[2].strip()
        if not hmac.compare_digest(given.encode(), token.encode()):
            text = "Please send the header Authorization: Bearer <METRICS_TOKEN>."
            raise errors.Unauthorized(text, errors.Code.WRONG_CREDENTIALS)
        return
    if not _is_loopback(request.remote_addr or "") or any(name in request.headers for name in FORWARDED):
        raise errors.Forbidden("Only this machine itself may read the figures, or who has the METRICS_TOKEN.")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class _AtScrape:
    def collect(self) -> Iterator[Metric]:
        for name, (what, read) in _at_scrape.items():
            if (value := read()) is not None:
                yield GaugeMetricFamily(name, what, value)


def text() -> bytes:
    """Return all figures, those of dead workers included, in the text format of Prometheus."""
    _sample()
    folder = processes.folder()
    shown = CollectorRegistry()
    shown.register(_AtScrape())
    if folder is None:
        return generate_latest(_registry) + generate_latest(shown)
    MultiProcessCollector(shown, str(folder))  # type: ignore[no-untyped-call]
    with _alone(folder):
        _bury(folder)
        return generate_latest(shown)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time read and merge the files."""
    with (folder / "scrape").open("w") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file ends it
        yield


def _bury(folder: Path) -> None:
    """Add the counts of dead workers up in one file for each kind, and forget their gauges.

    Without it each reload would leave files that every later answer reads.
    """
    for merged in folder.glob("*.merged"):  # whoever merged these was killed
        _end_merge(merged)
    dead = [path for path in folder.glob("*.db") if (pid := _pid_of(path)) != DEAD and not _lives(pid)]
    for kind in ("counter", "histogram"):
        files = [path for path in dead if path.name.startswith(kind)]
        if files:
            _add_up(folder / f"{kind}_{DEAD}.db", files)
    for path in dead:
        path.unlink(missing_ok=True)


def _add_up(total: Path, files: list[Path]) -> None:
    counts: dict[str, float] = {}
    for path in [total, *files] if total.exists() else files:
        for key, value, *_ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]
            counts[key] = counts.get(key, 0.0) + value
    draft = total.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    merged: Any = MmapedDict(str(draft))  # type: ignore[no-untyped-call]
    for key, value in counts.items():
        merged.write_value(key, value, 0.0)
    merged.close()
    names = total.with_suffix(".merged")
    names.write_text("\n".join(path.name for path in files))
    draft.rename(total)
    _end_merge(names)


def _end_merge(names: Path) -> None:
    """Remove the files that a total includes. The names of those whose draft has not become the total are forgotten.

    So whoever is killed in between neither loses counts nor counts twice. A count that goes down looks like a restart
    to Prometheus: it takes all that is left for new.
    """
    if not names.with_suffix(".draft").exists():
        for name in names.read_text().splitlines():
            (names.parent / name).unlink(missing_ok=True)
    names.unlink()


def _pid_of(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
