"""Starts a PostgreSQL cluster with a standby, PgBouncer and nginx for a bench, each as a process of its own."""

import getpass
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg2
import urllib3

NAME = "hosi"
AWAY, HERE = "10.77.0.2", "10.77.0.1"  # the addresses of a network namespace, and of its other end


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def missing_tools(*tools: str) -> list[str]:
    """Return which of PostgreSQL's server and these programs the machine lacks."""
    found = [] if _bin() else ["PostgreSQL's server (initdb)"]
    return found + [tool for tool in tools if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")]


def _bin() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else next(reversed(folders), None)


def as_postgres(*command: str | Path) -> list[str]:
    """Return the command, run by the user postgres if we are root: PostgreSQL and PgBouncer refuse root."""
    words = [str(word) for word in command]
    return ["runuser", "-u", "postgres", "--", *words] if getpass.getuser() == "root" else words


def run(*command: str | Path) -> None:
    """Run a command to its end. Raises RuntimeError with what it said if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))} failed: {done.stderr or done.stdout}")


class Postgres:
    """A PostgreSQL server. `namespace` names the network namespace in which it runs, if any."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", namespace: str = "") -> None:
        self.data, self.host, self.port, self.namespace = folder, host, free_port(), namespace
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The libpq words that name this server."""
        return f"host={self.host} port={self.port} user=postgres"

    def make(self, synchronous: bool) -> None:
        """Make an empty cluster that replicates to a standby named `standby`."""
        run(*as_postgres(tool("initdb"), "-D", self.data, "-A", "trust", "-U", "postgres", "--no-sync"))
        names = "'standby'" if synchronous else "''"
        settings = (
            "listen_addresses = '*'",
            f"unix_socket_directories = '{self.data}'",
            "wal_level = replica",
            f"synchronous_standby_names = {names}",
            "wal_sender_timeout = 5s",
            "wal_receiver_timeout = 5s",
            "max_connections = 200",
        )
        (self.data / "postgresql.auto.conf").write_text("\n".join(settings) + "\n")
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.77.0.0/24 trust\nhost replication all 10.77.0.0/24 trust\n")

    def copy(self, primary: "Postgres") -> None:
        """Make this a standby of `primary`."""
        backup = f"{primary.address} application_name=standby"
        run(*as_postgres(tool("pg_basebackup"), "-D", self.data, "-R", "-X", "stream", "-c", "fast", "-d", backup))
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"unix_socket_directories = '{self.data}'\nsynchronous_standby_names = ''\n")

    def start(self) -> None:
        """Start the server, and return when it answers."""
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        command = as_postgres(tool("postgres"), "-D", self.data, "-p", str(self.port))
        with (self.data.parent / f"{self.data.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*inside, *command], stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        until(self.answers)

    def answers(self) -> bool:
        with suppress(psycopg2.Error):
            self.query("SELECT 1")
            return True
        return False

    def query(self, sql: str, dbname: str = "postgres") -> list[tuple[object, ...]]:
        """Return the rows of one statement, committed."""
        connection = psycopg2.connect(f"{self.address} dbname={dbname} connect_timeout=3")
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def promote(self) -> None:
        """Make a standby the primary."""
        run(*as_postgres(tool("pg_ctl"), "promote", "-w", "-D", self.data))

    def kill(self) -> None:
        """Kill the server, all its processes, at once."""
        if self._process:
            for pid in _family(self._process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def tool(name: str) -> str:
    """Return the path of a program of PostgreSQL."""
    folder = _bin()
    assert folder
    return str(folder / name)


def until(happened: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `happened()` is true. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"{happened} did not happen within {seconds} s")
        time.sleep(0.05)


class PatroniMember(Postgres):
    """A PostgreSQL server that Patroni starts, and promotes when the primary has not renewed its lease in etcd."""

    def __init__(self, folder: Path, etcd: int) -> None:
        super().__init__(folder)
        self.etcd, self.rest = etcd, free_port()

    def start(self) -> None:
        """Start Patroni, which makes the cluster or copies the primary, and return when the server answers."""
        settings = {
            "scope": NAME,
            "name": self.data.name,
            "restapi": {"listen": f"127.0.0.1:{self.rest}", "connect_address": f"127.0.0.1:{self.rest}"},
            "etcd3": {"host": f"127.0.0.1:{self.etcd}"},
            "bootstrap": {
                "dcs": {"ttl": 20, "loop_wait": 2, "retry_timeout": 5, "synchronous_mode": True},
                "initdb": [{"auth-host": "trust"}, {"auth-local": "trust"}, {"encoding": "UTF8"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data),
                "bin_dir": str(_bin()),
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                ],
                "authentication": {name: {"username": "postgres"} for name in ("superuser", "replication")},
                "parameters": {"unix_socket_directories": str(self.data.parent), "max_connections": 200},
            },
        }
        file = self.data.parent / f"{self.data.name}.json"
        file.write_text(json.dumps(settings))  # JSON is YAML, too
        with (self.data.parent / f"{self.data.name}.log").open("ab") as log:
            command = as_postgres(_path("patroni"), file)
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd="/")
        until(self.answers, 60)

    def kill(self) -> None:
        """Kill Patroni and its PostgreSQL, which is no child of Patroni's."""
        lock = self.data / "postmaster.pid"
        if self._process and lock.exists():
            for pid in _family(int(lock.read_text().split()[0])):
                os.kill(pid, signal.SIGKILL)
        super().kill()

    def leads(self) -> bool:
        """Whether this is the primary, as Patroni's REST interface tells a load balancer."""
        with suppress(urllib3.exceptions.HTTPError):
            return urllib3.request("GET", f"http://127.0.0.1:{self.rest}/primary", retries=False).status == 200
        return False

    def promote(self) -> None:
        """Wait until Patroni has promoted this server."""
        until(self.leads, 120)


@contextmanager
def etcd(folder: Path) -> Iterator[int]:
    """The port of an etcd server."""
    port, peer = free_port(), f"http://127.0.0.1:{free_port()}"
    client = f"http://127.0.0.1:{port}"
    words = ("--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer)
    words += ("--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}")
    with (folder / "etcd.log").open("ab") as log:
        process = subprocess.Popen([_path("etcd"), "--data-dir", folder / "etcd", *words], stdout=log, stderr=log)
    try:
        until(lambda: _listens(port))
        yield port
    finally:
        process.kill()
        process.wait()


class PgBouncer:
    """PgBouncer in transaction mode, in front of the server that `point_at` names."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.file = folder / "pgbouncer.ini"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, server: Postgres) -> None:
        self.write(server)
        with (self.folder / "pgbouncer.log").open("ab") as log:
            self._process = subprocess.Popen(
                as_postgres(_path("pgbouncer"), self.file), stdout=log, stderr=log, start_new_session=True
            )
        until(lambda: _listens(self.port))

    def write(self, server: Postgres) -> None:
        self.file.write_text(
            f"[databases]\n{NAME} = host={server.host} port={server.port} user=postgres\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            "admin_users = postgres\npool_mode = transaction\nmax_client_conn = 500\n"
            "default_pool_size = 40\nserver_connect_timeout = 3\nserver_login_retry = 1\ntcp_user_timeout = 5000\n"
        )

    def point_at(self, server: Postgres) -> None:
        """Send the clients to another server, and cut the connections to the old one."""
        self.write(server)
        connection = psycopg2.connect(f"host=127.0.0.1 port={self.port} user=postgres dbname=pgbouncer")
        connection.autocommit = True
        with connection.cursor() as cursor:
            for command in ("RELOAD", f"KILL {NAME}", f"RESUME {NAME}"):
                cursor.execute(command)
        connection.close()

    def stop(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Nginx:
    """nginx in front of the nodes on these ports."""

    def __init__(self, folder: Path, ports: Sequence[int], fail_timeout: str = "1s", keepalive: int = 32) -> None:
        self.folder, self.port = folder, free_port()
        nodes = "".join(f"server 127.0.0.1:{port} max_fails=1 fail_timeout={fail_timeout};" for port in ports)
        nodes += f" keepalive {keepalive};" if keepalive else ""
        self.file = folder / "nginx.conf"
        connection = "''" if keepalive else "close"
        self.file.write_text(
            f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1;\n"
            "events { worker_connections 512; }\n"
            f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
            f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
            f"upstream nodes {{ {nodes} }}\n"
            f"server {{ listen 127.0.0.1:{self.port}; client_max_body_size 1100m;\n"
            "location / { proxy_pass http://nodes; proxy_http_version 1.1;\n"
            f"proxy_set_header Connection {connection};\n"
            "proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n"
            "proxy_set_header X-Request-ID $request_id; proxy_read_timeout 180s; } } }\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([_path("nginx"), "-c", str(self.file)], start_new_session=True)
        until(lambda: _listens(self.port))

    def stop(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _path(tool: str) -> str:
    found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found
    return found


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def network_namespace() -> Iterator[tuple[str, str]]:
    """A network of its own, reached at `AWAY`: its name, and the link whose end here can be taken down. Needs root."""
    name = link = f"hosi{os.getpid() % 100_000}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "addr", "add", f"{HERE}/24", "dev", link)
        run("ip", "link", "set", link, "up")
        for words in (
            ("addr", "add", f"{AWAY}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            run("ip", "netns", "exec", name, "ip", *words)
        yield name, link
    finally:
        run("ip", "netns", "del", name)
