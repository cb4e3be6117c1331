"""DATABASE_URL: every form that libpq takes, and how long requests wait for a vanished server."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from client import Client, migrate
from factories import USUAL, make_patient, sign_in, sign_up
from flask import Flask
from psycopg2.extensions import parse_dsn
from sqlalchemy import make_url

import config
import database_url
from app import create_app


def parameters(url: str) -> dict[str, Any]:
    """Return what the driver is given for this DATABASE_URL, our limits included."""
    setting = config.read_settings({"FLASK_ENV": "testing", "DATABASE_URL": url})
    read = make_url(setting["SQLALCHEMY_DATABASE_URI"])
    given = read.get_dialect()().create_connect_args(read)[1]
    return {**given, **setting["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:pw@a:5432,b:5433/clinic?target_session_attrs=read-write",
        "postgresql://me@a,b:5433/clinic",
        "postgresql://a:,b/clinic",
        "postgresql://[2001:db8::1]:5432,[::1]/clinic",
        "postgresql://[fe80::1%25eth0],b/clinic",
        "postgresql://%2Frun%2Fpostgresql,b:5433/clinic",
        "postgresql://%2Frun%2Fpostgresql/clinic",
        "postgresql://m%40e:p%2C%2F%40w@a,b/a%20clinic?options=-c%20search_path%3Dhosi",
        "postgresql://a,b",
        "postgresql:///clinic?host=a,b&port=5432,5433",
        "postgresql://me:p,w@a/clinic",
        "postgresql://me:pw@a:5433/clinic?sslmode=require&connect_timeout=9",
        "postgresql:///clinic",
        "postgres://a,b/clinic",
    ],
)
def test_a_url_is_read_as_libpq_reads_it(url: str) -> None:
    ours, theirs = parameters(url), parse_dsn(url)
    for wanted in (ours, theirs):
        wanted["port"] = str(wanted.get("port", "")).strip(",")  # a missing port is 5432 to both
    assert {name: str(ours[name]) for name in theirs} == theirs
    assert ours.keys() - theirs.keys() <= database_url.LIMITS.keys() | {"connect_timeout"}


@pytest.mark.parametrize("url", ["postgresql://a,b,c/clinic?port=5433", "postgresql:///clinic?host=a,b,c&port=5433"])
def test_one_port_is_the_port_of_every_host(url: str) -> None:
    assert parameters(url)["port"] == "5433,5433,5433"


def test_sqlalchemys_own_form_of_several_hosts_is_taken_too() -> None:
    given = parameters("postgresql:///clinic?host=a:5432&host=b:5433")
    assert (given["host"], given["port"]) == ("a,b", "5432,5433")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:a-secret@a:54x2/clinic",
        "postgresql://me:a-secret@a:70000/clinic",
        "postgresql://me:a-secret@a:1,b:2/clinic?port=1,2,3",
        "postgresql://me:a-secret@[::1,b/clinic",
        "postgresql://me:a-secret@a,b/clinic?sslmod=require",
    ],
)
def test_a_url_that_cannot_be_read_stops_the_start_with_a_sentence_without_the_password(url: str) -> None:
    with pytest.raises(config.ConfigError, match="DATABASE_URL: cannot be read") as stopped:
        parameters(url)
    assert "a-secret" not in str(stopped.value)


# --- A server that vanished ---


@pytest.mark.parametrize(("hosts", "seconds"), [("a", 5), ("a,b", 5), ("a,b,c", 3), ("a,b,c,d,e,f,g", 2)])
def test_several_hosts_share_the_time_to_connect(hosts: str, seconds: int) -> None:
    assert parameters(f"postgresql://{hosts}/clinic")["connect_timeout"] == seconds


def test_a_limit_in_the_url_wins() -> None:
    given = parameters("postgresql://a/clinic?tcp_user_timeout=60000&keepalives_idle=30")
    assert (given["tcp_user_timeout"], given["keepalives_idle"], given["connect_timeout"]) == ("60000", "30", 5)


# --- A real PostgreSQL ---


@pytest.fixture
def by_tcp(postgresql: str) -> Iterator[str]:
    """Return the address of the tests' PostgreSQL as `host:port`, by way of a forwarder if it has a socket only."""
    given = parse_dsn(postgresql)
    if not given["host"].startswith("/"):
        yield f"{given['host']}:{given.get('port', 5432)}"
        return
    listener = socket.create_server(("127.0.0.1", 0))
    path = f"{given['host']}/.s.PGSQL.{given.get('port', 5432)}"
    threading.Thread(target=forward, args=(listener, path), daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def forward(listener: socket.socket, path: str) -> None:
    with contextlib.suppress(OSError):
        while True:
            client = listener.accept()[0]
            server = socket.socket(socket.AF_UNIX)
            server.connect(path)
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=copy, args=(one, other), daemon=True).start()


def copy(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := one.recv(65536):
            other.sendall(piece)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_RDWR)
    one.close()


@pytest.fixture
def make_clinic(tmp_path: Any) -> Iterator[Callable[[str], Flask]]:
    made: list[Flask] = []

    def make(url: str) -> Flask:
        made.append(create_app({**USUAL, "DATABASE_URL": url, "INSTANCE_PATH": tmp_path / "instance"}))
        return made[-1]

    yield make
    for app in made:
        with app.app_context():
            app.extensions["sqlalchemy"].engine.dispose()


def account_and_name(url: str) -> tuple[str, str]:
    given = parse_dsn(url)
    password = f":{quote(given['password'], safe='')}" if given.get("password") else ""
    return f"{quote(given['user'], safe='')}{password}@", given["dbname"]


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("first", ["127.0.0.1:1", "[::1]:1", "%2Fnowhere%2Fat%2Fall", "no..host"])
def test_the_clinic_is_served_while_the_first_host_is_away(
    empty_database: str, by_tcp: str, make_clinic: Callable[[str], Flask], first: str
) -> None:
    account, name = account_and_name(empty_database)
    app = make_clinic(f"postgresql://{account}{first},{by_tcp}/{name}?target_session_attrs=read-write")
    migrate(app, "upgrade")
    sign_up(app, "Ada", "admin")
    assert make_patient(sign_in(app, "Ada"))["version"] == 1
    assert Client(app).get("/readyz").status_code == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has it")
@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
def test_a_connection_gives_up_a_server_that_vanished_within_ten_seconds(
    empty_database: str, by_tcp: str, make_clinic: Callable[[str], Flask]
) -> None:
    account, name = account_and_name(empty_database)
    app = make_clinic(f"postgresql://{account}{by_tcp}/{name}")
    with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver.info.dsn_parameters["connect_timeout"] == "5"
        with socket.socket(fileno=driver.fileno()) as link:
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle, interval, count = (link.getsockopt(socket.IPPROTO_TCP, option) for option in options)
            assert idle + interval * count <= 20
            link.detach()
