"""Fixtures: the real application over HTTP, on SQLite and on PostgreSQL. Each test begins with empty tables."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, FLAGS, MISSING, Clinic
from client import Client, listening, migrate, wait_until
from factories import USUAL, new_login, sign_up
from flask import Flask
from playwright.sync_api import Browser, Page, sync_playwright
from remembered import signed_in
from sql import connections_in_use, dispose, empty_tables, sql

from app import create_app
from server.limits import limiter
from testing.cloudinary_double import CloudinaryDouble
from testing.postgresql import copy_database, postgresql_server, run_sql
from testing.postgresql import empty_database as empty_database_at
from testing.s3_double import S3Double

ENGINES = ("sqlite", "postgresql")

# The tests' own server forgets what a crash of the machine would cost it: no test pulls the plug.
FORGETFUL = tuple(f"ALTER SYSTEM SET {name} = off" for name in ("fsync", "full_page_writes", "synchronous_commit"))


@contextmanager
def own_server() -> Iterator[str]:
    """The URL of the PostgreSQL at TEST_DATABASE_URL, else of a server for this run, which is quick and forgetful."""
    given = "TEST_DATABASE_URL" in os.environ
    with postgresql_server() as url:
        if not given:
            run_sql(url, *FORGETFUL, "SELECT pg_reload_conf()")
        yield url


def pytest_configure(config: pytest.Config) -> None:
    """Starts PostgreSQL once for all workers of pytest-xdist; they inherit its URL in TEST_DATABASE_URL."""
    with_workers = getattr(config.option, "numprocesses", None) and not config.option.collectonly
    if with_workers and "TEST_DATABASE_URL" not in os.environ:
        server = own_server()
        os.environ["TEST_DATABASE_URL"] = server.__enter__()
        config.add_cleanup(lambda: server.__exit__(None, None, None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes halves of surrogate pairs in what a test logged: a worker that reported them would die."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of an empty database, of this process alone."""
    with own_server() as server, empty_database_at(server, f"hosi_test_{os.getpid()}") as url:
        run_sql(url, f"ALTER DATABASE hosi_test_{os.getpid()} SET synchronous_commit = off")  # three times as fast
        yield url
        run_sql(url, f"DROP DATABASE IF EXISTS hosi_test_{os.getpid()}_template")


@pytest.fixture(scope="session")
def quick_folder() -> Iterator[Path]:
    """A folder in memory where Linux has one: SQLite and the image store sync each write to the disk."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    with tempfile.TemporaryDirectory(prefix="hosi-test-", dir=memory if roomy else None) as folder:
        yield Path(folder)


@pytest.fixture
def own_folder(quick_folder: Path) -> Iterator[Path]:
    """A quick folder of this test alone."""
    with tempfile.TemporaryDirectory(dir=quick_folder) as folder:
        yield Path(folder)


@pytest.fixture(params=ENGINES)
def empty_database(request: pytest.FixtureRequest, own_folder: Path) -> Iterator[str]:
    """The URL of a database without any table, of this test alone."""
    if request.param == "sqlite":
        yield f"sqlite:///{own_folder / 'own.db'}"
        return
    server = str(request.getfixturevalue("postgresql"))
    with empty_database_at(server, f"hosi_test_{os.getpid()}_own") as url:
        yield url


@pytest.fixture(scope="session", params=ENGINES)
def database_url(request: pytest.FixtureRequest, quick_folder: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{quick_folder / 'hosi.db'}"
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture(scope="session")
def make_app(database_url: str, quick_folder: Path) -> Iterator[Callable[..., Flask]]:
    """Makes an application on the tests' database, with other settings than usual."""
    made: list[Flask] = []

    def let_go(apps: list[Flask]) -> None:
        for app in apps:
            dispose(app)

    def make(**settings: Any) -> Flask:
        let_go(made[1:])  # an idle application keeps its connections, and PostgreSQL has a hundred
        here = {"DATABASE_URL": database_url, "INSTANCE_PATH": tempfile.mkdtemp(dir=quick_folder)}
        made.append(create_app({**USUAL, **here, **settings}))
        return made[-1]

    yield make
    let_go(made)


@pytest.fixture(scope="session")
def migrated(make_app: Callable[..., Flask]) -> Flask:
    """The usual application, its schema made by the migrations."""
    app = make_app()
    migrate(app, "upgrade")
    return app


@pytest.fixture
def bare_app(empty_database: str, own_folder: Path) -> Iterator[Flask]:
    """An application on a database of its own, in which there is nothing yet, no schema either."""
    app = create_app({**USUAL, "DATABASE_URL": empty_database, "INSTANCE_PATH": own_folder / "instance"})
    yield app
    dispose(app)


@pytest.fixture(scope="session")
def templates() -> set[str]:
    """The engines on which a database that the migrations made is there to be copied."""
    return set()


@pytest.fixture
def own_app(
    bare_app: Flask, empty_database: str, templates: set[str], quick_folder: Path, request: pytest.FixtureRequest
) -> Flask:
    """An application on a database of its own with the whole schema. The migrations run once for each engine."""
    engine, _, path = empty_database.partition(":///")
    if engine == "sqlite":
        template = str(quick_folder / "template.db")
        copy: Callable[[str, str], object] = shutil.copy
    else:
        server = str(request.getfixturevalue("postgresql"))
        engine, path = "postgresql", empty_database.partition("?")[0].rpartition("/")[2]
        template, copy = path.replace("_own", "_template"), partial(copy_database, server)
    if engine in templates:
        copy(template, path)
    else:
        migrate(bare_app, "upgrade")
        dispose(bare_app)
        copy(path, template)
        templates.add(engine)
    return bare_app


@pytest.fixture
def app(migrated: Flask) -> Iterator[Flask]:
    limiter.enabled = migrated.config["RATELIMIT_ENABLED"]  # one limiter serves all applications: the last one set it
    empty_tables(migrated)
    shutil.rmtree(Path(migrated.config["INSTANCE_PATH"]) / "images", ignore_errors=True)
    yield migrated
    assert connections_in_use(migrated) == 0, "a connection was not given back: whoever wants its locks waits forever"


@pytest.fixture
def address(app: Flask) -> Iterator[str]:
    """Where the application listens, for clients of another kind than `Client`."""
    with listening(app) as where:
        yield where


@pytest.fixture
def anonymous(app: Flask) -> Client:
    return Client(app)


@pytest.fixture
def admin(app: Flask) -> Client:
    return signed_in(app, "Ada", "admin")


@pytest.fixture
def doctor(app: Flask, admin: Client) -> Client:
    return signed_in(app, "Dora", "doctor")


@pytest.fixture
def other_doctor(app: Flask, admin: Client) -> Client:
    return signed_in(app, "Otto", "doctor")


@pytest.fixture
def receptionist(app: Flask, admin: Client) -> Client:
    return signed_in(app, "Rosa", "receptionist")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A tab of Chromium, with a storage of its own."""
    context = chromium.new_context(viewport={"width": 1200, "height": 1000})
    yield context.new_page()
    context.close()


@pytest.fixture
def clinic(app: Flask, address: str, page: Page) -> Iterator[Clinic]:
    """The clinic's page. Its console must stay clean."""
    opened = Clinic(page, address)
    yield opened
    opened.await_pictures()
    wait_until(lambda: connections_in_use(app) == 0)  # what is under way
    assert not opened.faults


@pytest.fixture(scope="session")
def cloudinary_server() -> Iterator[CloudinaryDouble]:
    with CloudinaryDouble() as double:
        yield double


@pytest.fixture
def cloud(cloudinary_server: CloudinaryDouble) -> CloudinaryDouble:
    cloudinary_server.reset()
    return cloudinary_server


@pytest.fixture
def cloud_app(app: Flask, make_app: Callable[..., Flask], cloud: CloudinaryDouble) -> Flask:
    """The same application with its new images on Cloudinary."""
    return make_app(
        CLOUDINARY_CLOUD_NAME=cloud.cloud_name,
        CLOUDINARY_API_KEY=cloud.api_key,
        CLOUDINARY_API_SECRET=cloud.api_secret,
        CLOUDINARY_UPLOAD_PREFIX=cloud.url,
        INSTANCE_PATH=app.config["INSTANCE_PATH"],
    )


@pytest.fixture
def at_home(app: Flask, make_app: Callable[..., Flask]) -> Callable[[Client, str], Client]:
    """The same person at the same clinic, had it its home in this time zone from the start."""

    def move(client: Client, zone: str) -> Client:
        sql(app, "UPDATE clinic SET timezone = :zone", zone=zone)
        elsewhere = make_app(TIMEZONE=zone, JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
        return Client(elsewhere, client.token, client.user)

    return move


@pytest.fixture
def clouded(cloud_app: Flask, doctor: Client) -> Client:
    """The doctor at a clinic that keeps its images on Cloudinary."""
    return Client(cloud_app, doctor.token, doctor.user)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Double]:
    with S3Double() as double:
        yield double


@pytest.fixture
def s3(s3_server: S3Double) -> S3Double:
    s3_server.reset()
    return s3_server


@pytest.fixture
def s3_app(app: Flask, make_app: Callable[..., Flask], s3: S3Double) -> Flask:
    """The same application with its new images on S3."""
    return make_app(**s3.settings, INSTANCE_PATH=app.config["INSTANCE_PATH"])


@pytest.fixture
def on_s3(s3_app: Flask, doctor: Client) -> Client:
    """The doctor at a clinic that keeps its images on S3."""
    return Client(s3_app, doctor.token, doctor.user)


REDIS = shutil.which("redis-server")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Redis at REDIS_URL, else one that is started here."""
    given = os.environ.get("REDIS_URL", "")
    if given:
        yield given
        return
    if REDIS is None:
        pytest.skip("Redis is not installed (Debian: apt-get install redis-server), and REDIS_URL is not set")
    socket_file = tmp_path_factory.mktemp("redis") / "redis.sock"
    command = [REDIS, "--port", "0", "--unixsocket", str(socket_file), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        until = time.monotonic() + 20
        while not socket_file.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        yield f"redis+unix://{socket_file}"
        server.terminate()


@pytest.fixture
def nia(app: Flask) -> dict[str, Any]:
    """The tokens of a doctor."""
    sign_up(app, "Nia")
    return new_login(app)
