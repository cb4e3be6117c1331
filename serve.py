"""Serves the application with granian: `make run` and production.

Workers are processes. SIGTERM ends them after their requests, SIGHUP replaces them one by one, and a worker that dies
is replaced. docs/deployment.md has more.
"""

import atexit
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import jwt
from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings

from config import ROOT, read_settings
from server import liveness, logs, processes
from server.gate import Places

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from server.edge import Edge

# Requests that a worker computes at once. With two quick ones on SQLite, the slowest of a hundred took 200 times as
# long as the usual one, not 4 times. PostgreSQL works outside of the process, and another request computes meanwhile.
PLACES = {"sqlite": Places(quick=1, slow=12), "postgresql": Places(quick=2, slow=12)}
UNIX = "unix:"  # begins a HOST that is the path of a socket
STARTING = 5  # seconds that a new worker has to start, before the old one is told to stop
LAST_SECONDS = 1  # for which a worker that is replaced takes no new connection, and answers on those that it has
STOPPING = 30  # seconds that the requests of a worker may take after it was told to stop
# Prints a sentence about what is wrong. A process of its own reads the code and the settings anew.
CHECK = [sys.executable, "-m", "flask", "--app", "app", "check"]
CHECKING = 60  # seconds that the check may take before workers are replaced; SQLite alone waits 40 for a lock
RETRY = 5  # seconds, then a worker is asked for again that died and would not start
LIFETIME = 24 * 3600  # seconds; then a worker is replaced, in case its memory grows
CONNECTIONS = 4_000  # of a worker; more wait in the backlog
# Signals to a worker that stops soon: end each connection with its next answer; take no new connection, besides.
END_CONNECTIONS, TAKE_NO_MORE = getattr(signal, "SIGUSR1", None), getattr(signal, "SIGUSR2", None)  # not on Windows
LISTENER = "HOSI_LISTENER"  # the environment variable that tells a worker the number of its listening socket
HTTP = HTTP1Settings(header_read_timeout=30_000, max_buffer_size=64 * 1024)  # milliseconds; bytes of all headers
logger = logging.getLogger("hosi.serve")


def load(_target: str) -> Callable[..., Any]:
    """Return the ASGI application. A worker calls this when it starts."""
    from app import create_app  # not in the main process: a reload must load the code again
    from server import metrics
    from server.database import db
    from server.edge import Edge

    app = create_app()
    app.extensions["openapi"]()  # makes the document before the first request
    setting = app.config
    metrics.start_sampling()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    if port := setting["HEALTH_PORT"]:
        liveness.start(setting["HOST"], port)
    with app.app_context():
        atexit.register(_leave, [*db.engines.values()])

    def is_signed(authorization: str) -> bool:
        try:
            jwt.decode(authorization.partition(" ")[2].strip(), setting["JWT_SECRET_KEY"], ["HS256"])
        except jwt.PyJWTError:
            return False
        return True

    places = PLACES[urlsplit(setting["SQLALCHEMY_DATABASE_URI"]).scheme.partition("+")[0]]
    patience = setting["SHED_AFTER_MS"] / 1000
    edge = Edge(app, setting["WEB_THREADS"], places, is_signed, setting["CORS_ORIGINS"], patience)
    if END_CONNECTIONS and TAKE_NO_MORE:
        signal.signal(END_CONNECTIONS, lambda *_: edge.end_connections())
        signal.signal(TAKE_NO_MORE, lambda *_: _take_no_more(edge))
    return edge


def _take_no_more(edge: "Edge") -> None:
    """Leave new connections to the worker that comes: put a socket to which nobody connects in the listener's place.

    When a worker stops, Rust closes the connections from which it has read nothing, and a request may wait there.
    """
    edge.end_connections()
    with socket.create_server(("127.0.0.1", 0)) as nobodys:
        nobodys.setblocking(False)
        os.dup2(nobodys.fileno(), int(os.environ[LISTENER]))


def _end_with_parent() -> None:
    """Stop this worker when the main process was killed: nobody else would."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _leave(engines: "Sequence[Engine]") -> None:
    """End this worker at the end of its work, without the rest of Python's own end.

    Threads of granian still run, and Rust aborts the process if Python takes the lock of the interpreter from them.
    """
    for engine in engines:
        engine.dispose()  # the last connection to an SQLite file tidies up beside it
    logging.shutdown()
    os._exit(0)


def _tell(worker: Any, number: int | None) -> bool:
    """Send a worker a signal. Return whether it was told."""
    if number is None or not worker.is_alive():
        return False
    os.kill(worker.inner.pid, number)
    return True


class Server(Granian):  # type: ignore[misc, valid-type]
    """Granian, which after SIGTERM serves on for a while: a load balancer asks `/readyz` and sends nothing more.

    It sets attributes that granian does not document: look at them when granian is upgraded.
    """

    drain_seconds = 0
    listeners: list[tuple[Any, socket.socket]]

    def _init_shared_socket(self) -> None:
        """Make a listening socket for each worker, which this process keeps while workers come and go.

        A connection waits in it for the next worker if one ends. Granian's workers make their own on Linux, and reset
        the connections that wait when they end. With one socket for all, a worker can get all connections.
        """
        super()._init_shared_socket()
        granian: Any = self  # its types do not tell these attributes
        self.listeners = [(granian._shd, granian._sso)] * self.workers  # of a Unix socket, and everywhere but on Linux
        if granian._ssp:
            holders = [granian._ssp.build() for _ in range(self.workers)]
            self.listeners = [(holder, socket.socket(fileno=holder.get_fd())) for holder in holders]

    def _drop_shared_socket(self) -> None:
        for _, listener in self.listeners:
            listener.close()

    def _spawn_worker(self, idx: int, *arguments: Any, **named: Any) -> Any:
        """Have a worker that is replaced take no more connections, and end those that it has, before it stops.

        A request that is on its way gets no answer if the worker closes the connection at this moment. Without this, 1
        of 4,000 requests over kept connections failed during a reload, and 8 of 94,000 over new ones on a busy machine.
        """
        granian: Any = self
        granian._ssp, (granian._shd, granian._sso) = None, self.listeners[idx]
        os.environ[LISTENER] = str(granian._sso.fileno())
        worker = super()._spawn_worker(idx, *arguments, **named)
        stop = worker.terminate

        def stop_gently() -> None:
            if not self.interrupt_signal and _tell(worker, TAKE_NO_MORE):
                time.sleep(LAST_SECONDS)
            stop()

        worker.terminate = stop_gently
        return worker

    def _respawn_workers(self, workers: list[int], *arguments: Any, **named: Any) -> None:
        """Replace workers, if new ones would start: one that serves is not given away for one that ends at once.

        `.env` and the code may have changed since they started, and a fault there must not stop what runs. Who reloads
        tries again; a worker that died is asked for again each RETRY seconds.
        """
        replaced = [self.wrks[number] for number in workers]
        for worker in replaced:  # Granian ends the server if one is asked for that has just been replaced
            worker.interrupt_by_parent = True
        would_start = self._would_start()
        if self.interrupt_signal:
            return
        if not would_start:
            for worker in replaced:
                worker.interrupt_by_parent = False
            logger.error("No worker is replaced: see the fault above. Those that run serve on.")
            asking = threading.Timer(RETRY, self._ask_for_dead_workers)
            asking.daemon = True
            asking.start()
            return
        super()._respawn_workers(workers, *arguments, **named)

    def _would_start(self) -> bool:
        """Return whether a new worker would start.

        A check that waits for a database that hangs is ended after CHECKING seconds, or when the server is to stop.
        """
        end = time.monotonic() + CHECKING
        with subprocess.Popen(CHECK, cwd=ROOT) as checking:  # noqa: S603  # a command of our own
            while not self.interrupt_signal and time.monotonic() < end:
                with suppress(subprocess.TimeoutExpired):
                    return checking.wait(0.1) == 0
            checking.kill()
        if not self.interrupt_signal:
            logger.error("The check took more than %s seconds.", CHECKING)
        return False

    def _ask_for_dead_workers(self) -> None:
        gone = [one.idx for one in self.wrks if not (one.is_alive() or one.interrupt_by_parent)]
        if dead := set(gone).difference(self.interrupt_children):
            self.interrupt_children += dead
            self.main_loop_interrupt.set()

    def signal_handler_interrupt(self, number: int = 0, *rest: Any) -> None:
        """Begin to drain at SIGTERM. Stop at once at a second signal, at Ctrl-C, and where nothing is to be drained."""
        if number != signal.SIGTERM or not self.drain_seconds or processes.is_draining():
            super().signal_handler_interrupt(number, *rest)
            return
        processes.start_draining()
        for worker in self.wrks:
            _tell(worker, END_CONNECTIONS)
        drained = threading.Timer(self.drain_seconds, super().signal_handler_interrupt)
        drained.daemon = True
        drained.start()


def check() -> None:
    """End the start with a sentence if a worker would not start."""
    if code := subprocess.run(CHECK, cwd=ROOT, check=False).returncode:  # noqa: S603  # a command of our own
        sys.exit(code)


def check_address(host: str, port: int) -> None:
    """End the start with a sentence if something listens there: the workers share the port, with a stranger, too.

    Removes the file of a Unix socket that nobody listens to: a server that was killed left it.
    """
    if host.startswith(UNIX):
        path = Path(host.removeprefix(UNIX))
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                sys.exit(f"The server cannot listen on {path}: another server does.")
        if path.is_socket():
            path.unlink()
        return
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        sys.exit(f"The server cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}.")


def main(target: Callable[[str], Callable[..., Any]] = load) -> None:
    """Serve what `target` returns in each worker, until a signal ends it."""
    os.chdir(ROOT)
    setting = read_settings()
    logs.set_up(setting["LOG_LEVEL"], setting["LOG_FORMAT"])
    check()
    host = setting["HOST"]
    check_address(host, setting["PORT"])
    multiprocessing.set_start_method("spawn")  # a worker imports the code anew, also after SIGHUP
    for number in filter(None, (END_CONNECTIONS, TAKE_NO_MORE)):
        signal.signal(number, signal.SIG_IGN)  # a worker that still starts inherits this
    processes.make_folder()
    server = Server(
        "app",
        address=host,
        port=setting["PORT"],
        uds=Path(host.removeprefix(UNIX)) if host.startswith(UNIX) else None,
        uds_permissions=0o666,  # the folder says who may connect; nginx is another user
        interface=Interfaces.ASGINL,
        workers=setting["WEB_CONCURRENCY"],
        http=HTTPModes.http1,
        http1_settings=HTTP,
        websockets=False,
        backlog=2048,
        backpressure=CONNECTIONS,
        respawn_failed_workers=True,
        respawn_interval=STARTING,
        workers_kill_timeout=STOPPING,
        workers_lifetime=LIFETIME if setting["FLASK_ENV"] == "production" else None,
        log_dictconfig=logs.granian_config(setting["LOG_FORMAT"]),
    )
    server.drain_seconds = setting["DRAIN_SECONDS"]
    server.serve(target_loader=target)


if __name__ == "__main__":
    main()
