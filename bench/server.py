"""Runs the real server for a bench: `serve.py`, as `make run` starts it, with its own database and instance folder."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from testing.processes import workers_of  # noqa: E402

TOOLS = Path(sys.executable).parent
PASSWORD = "correct horse battery"


class Answer(NamedTuple):
    status: int
    body: Any
    seconds: float


def _driver(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg2://{rest}" if scheme in ("postgres", "postgresql") else url


@contextmanager
def database(folder: str, name: str = "hosi") -> Iterator[str]:
    """The URL of an empty database: on the server at DATABASE_URL, dropped at the end; else an SQLite file."""
    given = _driver(os.environ.get("DATABASE_URL", ""))
    if not given.startswith("postgresql"):
        yield f"sqlite:///{folder}/{name}.db"
        return
    name = f"{name}_bench_{os.getpid()}"
    own = create_engine(given, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with own.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield own.url.set(database=name).render_as_string(hide_password=False)
    finally:
        with own.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


class Server:
    """A server on a database that is migrated at first. It can be started and killed, with all workers, repeatedly."""

    def __init__(self, url: str, folder: str, revision: str = "head", root: Path = ROOT, **settings: str) -> None:
        self.root = root  # the checkout whose code it runs
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment = {
            **os.environ,
            "FLASK_ENV": "development",
            "FLASK_APP": "app.py",
            "DATABASE_URL": url,
            "INSTANCE_PATH": folder,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": "2",
            "BCRYPT_LOG_ROUNDS": "4",
            "RATELIMIT_ENABLED": "false",
            "LOG_LEVEL": "ERROR",
            "CLOUDINARY_URL": "",
            "CLOUDINARY_CLOUD_NAME": "",
            **settings,
        }
        self.engine: Engine = create_engine(_driver(url), poolclass=NullPool)
        self._process: subprocess.Popen[bytes] | None = None
        self.http = urllib3.PoolManager(maxsize=64, retries=False, timeout=60)
        code, said = self.flask("db", "upgrade", revision)
        assert code == 0, said

    def flask(self, *arguments: str) -> tuple[int, str]:
        """Runs a `flask` command: its exit code and what it said."""
        done = subprocess.run(
            [TOOLS / "flask", *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "serve.py" if (self.root / "serve.py").exists() else "app.py"],  # of an older version
            cwd=self.root,
            env=self.environment,
            stderr=subprocess.DEVNULL,  # the access log, a line for each record that is shown
            start_new_session=True,
        )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if self.call("GET", "/readyz").status == 200:
                    return
            except urllib3.exceptions.HTTPError:
                time.sleep(0.05)
        raise RuntimeError("the server did not start within a minute")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server and all its workers at the same moment."""
        if self._process:
            workers = self.workers()
            os.killpg(self._process.pid, how)
            self._process.wait()
            while any(Path(f"/proc/{worker}").exists() for worker in workers):  # nobody waits for them
                time.sleep(0.01)
            self._process = None
        self.http.clear()

    def terminate(self) -> None:
        """Stop the server as systemd does with KillMode=mixed: only the main process is told."""
        assert self._process
        self._process.terminate()
        self._process.wait()
        self._process = None
        self.http.clear()

    def reload(self) -> None:
        """Replace all workers, as `systemctl reload` does, and return when the old ones have ended."""
        assert self._process
        old = set(self.workers())
        self._process.send_signal(signal.SIGHUP)
        while len(now := self.workers()) != len(old) or old & set(now):
            time.sleep(0.05)
        self.http.clear()

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        assert self._process
        return workers_of(self._process.pid)

    def stop(self) -> None:
        self.kill(signal.SIGTERM)
        self.engine.dispose()

    def call(
        self, method: str, path: str, body: Any = None, token: str = "", fields: Any = None, **headers: str
    ) -> Answer:
        """Raises urllib3's HTTPError where there is no answer."""
        if token:
            headers["Authorization"] = f"Bearer {token}"
        kwargs: dict[str, Any] = {"fields": fields} if fields else {}
        if body is not None:
            kwargs["body"] = json.dumps(body)
            headers["Content-Type"] = "application/json"
        began = time.perf_counter()
        answer = self.http.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers, **kwargs)
        seconds = time.perf_counter() - began
        return Answer(answer.status, json.loads(answer.data), seconds)

    def sign_up(self, role: str = "doctor") -> tuple[int, str]:
        """A new member of the staff, signed in: id and access token."""
        person = {"first_name": "Ada", "last_name": "Otieno", "role": role}
        login = {"email": f"{secrets.token_hex(4)}@clinic.test", "password": PASSWORD}
        made = self.call("POST", "/signup", person | login)
        assert made.status == 201, made.body
        return made.body["id"], self.call("POST", "/login", login).body["access_token"]

    def past(self, ago: timedelta) -> datetime | str:
        """A time to be written by SQL, as SQLAlchemy has it there."""
        then = datetime.now(UTC) - ago
        return str(then.replace(tzinfo=None)) if self.engine.dialect.name == "sqlite" else then

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """The rows, if it gives any; committed."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []


@contextmanager
def server(root: Path = ROOT, **settings: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, database(folder) as url:
        one = Server(url, folder, root=root, **settings)
        try:
            one.start()
            yield one
        finally:
            one.stop()
