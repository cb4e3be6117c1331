"""The schema is upgraded while the server runs, and a stopped upgrade continues where it was."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from client import Client, assert_refused, migrate, run_cli
from factories import make_patient, sign_in, sign_up
from flask import Flask
from sql import rows
from sqlalchemy import Engine

ROOT = Path(__file__).parent.parent

ADDS_A_COLUMN = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{revision}", "{before}", None, None


def upgrade() -> None:
    op.add_column("patients", sa.Column("length", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("patients", sa.Column("rewritten", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    pass
"""
REWRITES_ROWS = """
import time

import sqlalchemy as sa
from server.migrating import rewrite_rows

revision, down_revision, branch_labels, depends_on = "{revision}", "{before}", None, None


def upgrade() -> None:
    rewrite_rows("patients", "length = 0", measure, size={size})


def measure(connection, ids):
    time.sleep({pause} * len(ids))
    measured = sa.text("UPDATE patients SET length = length(last_name), rewritten = rewritten + 1 WHERE id IN :ids")
    connection.execute(measured.bindparams(sa.bindparam("ids", ids, expanding=True)))


def downgrade() -> None:
    pass
"""
FAILS = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{revision}", "{before}", None, None


def upgrade() -> None:
    op.create_table("half", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("SELECT nonsense")


def downgrade() -> None:
    pass
"""


def newer_code(folder: Path, *migrations: str, **values: Any) -> str:
    """Return a folder of migrations that has these after the newest of ours, 9001 and so on."""
    shutil.copytree(ROOT / "migrations", folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = max(path.name[:4] for path in folder.glob("versions/0*.py"))
    for number, migration in enumerate(migrations, 9001):
        text = migration.format(**values, revision=number, before=before)
        (folder / "versions" / f"{number}_later.py").write_text(text)
        before = str(number)
    return str(folder)


def engine_of(app: Flask) -> Engine:
    with app.app_context():
        engine: Engine = app.extensions["sqlalchemy"].engine
    return engine


def revision_of(app: Flask) -> str:
    return str(rows(app, "SELECT version_num FROM alembic_version")[0][0])


@pytest.fixture
def ada(own_app: Flask) -> Client:
    sign_up(own_app, "Ada", "admin")
    return sign_in(own_app, "Ada")


def add_patients(app: Flask, number: int) -> None:
    """Copy the first patient, so often."""
    columns = (
        "first_name, last_name, phone_number, status, doctor_summary, diagnosis, sex, created_at, updated_at, version"
    )
    counted = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number})"
    rows(
        app,
        f"INSERT INTO patients (mrn, {columns}) {counted} "
        f"SELECT 'C-' || n.i, {columns} FROM n, patients WHERE patients.id = 1",
    )


# --- Readiness during a rolling upgrade ---


def test_a_schema_that_newer_code_has_upgraded_is_ready(ada: Client, tmp_path: Path) -> None:
    migrate(ada.app, "upgrade", "--directory", newer_code(tmp_path / "newer", ADDS_A_COLUMN))
    ready = ada.get("/readyz")
    assert (ready.status_code, ready.json["schema_revision"]) == (200, "9001")
    assert make_patient(ada)["version"] == 1


@pytest.mark.parametrize("revision", ["0001", "0000", "later", "9c1f20aa", ""])
def test_a_schema_that_is_older_or_of_another_program_is_not_ready(ada: Client, revision: str) -> None:
    rows(ada.app, f"UPDATE alembic_version SET version_num = '{revision}'")
    assert_refused(ada.get("/readyz"), 503)


def test_a_node_of_the_old_version_starts_after_the_upgrade(ada: Client, tmp_path: Path) -> None:
    migrate(ada.app, "upgrade", "--directory", newer_code(tmp_path / "newer", ADDS_A_COLUMN))
    migrate(ada.app, "upgrade")  # as `make run` does
    assert revision_of(ada.app) == "9001"
    assert run_cli(ada.app, "db", "downgrade")[0] == 1


# --- One transaction for each migration ---


def test_migrations_before_one_that_fails_are_kept(ada: Client, tmp_path: Path) -> None:
    newer = newer_code(tmp_path / "newer", ADDS_A_COLUMN, FAILS)
    failed = ada.app.test_cli_runner().invoke(args=["db", "upgrade", "--directory", newer])
    assert failed.exit_code != 0
    assert revision_of(ada.app) == "9001"
    assert rows(ada.app, "SELECT length FROM patients") == []
    make_half = "CREATE TABLE half (id INTEGER)"  # it fails if the table is there
    rows(ada.app, make_half)


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
def test_a_migration_waits_for_a_lock_while_others_go_on(ada: Client, empty_database: str, tmp_path: Path) -> None:
    newer = newer_code(tmp_path / "newer", ADDS_A_COLUMN)
    upgrade = threading.Thread(target=migrate, args=(ada.app, "upgrade", "--directory", newer))
    with closing(psycopg2.connect(empty_database)) as long_reader, long_reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM patients")  # its transaction holds the table for two seconds
        upgrade.start()
        end, slowest = time.monotonic() + 2, 0.0
        while (began := time.monotonic()) < end:
            assert ada.get("/patients").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        assert revision_of(ada.app) != "9001"
    upgrade.join()
    assert revision_of(ada.app) == "9001"
    assert slowest < 1


# --- Rows, in batches ---


def test_rows_are_rewritten_while_readers_and_writers_go_on(ada: Client, tmp_path: Path) -> None:
    app = ada.app
    make_patient(ada, last_name="Wanjiru")
    add_patients(app, 5_000)
    newer = newer_code(tmp_path / "newer", ADDS_A_COLUMN, REWRITES_ROWS, size=200, pause=0.0005)
    done = threading.Event()
    answers: list[tuple[int, float]] = []

    def go_on(ask: Callable[[Client, int], Any]) -> None:
        client, number = Client(app, ada.token), 0
        while not done.is_set():
            number, began = number + 1, time.monotonic()
            answers.append((ask(client, number).status_code, time.monotonic() - began))
            time.sleep(0.02)  # two cores have the server, its clients and the upgrade to run

    asked: list[Callable[[Client, int], Any]] = [
        lambda client, n: client.get("/patients?limit=50"),
        lambda client, n: client.get(f"/patient/{n % 5000 + 1}"),
        lambda client, n: client.post("/patients", {"first_name": "A", "last_name": "New", "phone_number": "0712"}),
        lambda client, n: client.patch(f"/patient/{n * 37 % 5000 + 1}", {"diagnosis": f"Guess {n}"}),
    ]
    threads = [threading.Thread(target=go_on, args=(ask,)) for ask in asked]
    for thread in threads:
        thread.start()
    try:
        migrate(app, "upgrade", "--directory", newer)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {status // 100 for status, _ in answers} == {2}
    assert max(seconds for _, seconds in answers) < 2
    assert revision_of(app) == "9002"
    assert rows(app, "SELECT DISTINCT rewritten FROM patients WHERE substr(mrn, 1, 2) = 'C-'") == [(1,)]


def upgrading(app: Flask, newer: str) -> "subprocess.Popen[bytes]":
    settings = {
        "FLASK_ENV": "development",
        "DATABASE_URL": app.config["DATABASE_URL"],
        "INSTANCE_PATH": str(app.config["INSTANCE_PATH"]),
    }
    command = [sys.executable, "-m", "flask", "db", "upgrade", "--directory", newer]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)


def test_an_upgrade_that_was_killed_in_a_batch_goes_on_where_it_was(ada: Client, tmp_path: Path) -> None:
    app = ada.app
    make_patient(ada)
    add_patients(app, 100)
    newer = newer_code(tmp_path / "newer", ADDS_A_COLUMN, REWRITES_ROWS, size=10, pause=0.02)
    killed = upgrading(app, newer)
    count = "SELECT count(*) FROM patients WHERE rewritten = 1"
    while revision_of(app) != "9001" or rows(app, count)[0][0] < 20:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert revision_of(app) == "9001"
    assert 20 <= rows(app, count)[0][0] < 101
    assert upgrading(app, newer).wait() == 0
    assert revision_of(app) == "9002"
    assert rows(app, "SELECT DISTINCT length, rewritten FROM patients") == [(len("Wanjiru"), 1)]


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
def test_a_migration_that_rewrites_rows_changes_nothing_else(ada: Client, tmp_path: Path) -> None:
    both = REWRITES_ROWS.replace(
        "    rewrite_rows(",
        "    from alembic import op\n    op.execute('CREATE TABLE more (id int)')\n    rewrite_rows(",
    )
    newer = newer_code(tmp_path / "newer", ADDS_A_COLUMN, both, size=10, pause=0)
    code, _ = run_cli(ada.app, "db", "upgrade", "--directory", newer)
    assert code == 1
    assert revision_of(ada.app) == "9001"


def test_rows_that_are_not_rewritten_stop_the_upgrade(ada: Client, tmp_path: Path) -> None:
    make_patient(ada)
    forgets = REWRITES_ROWS.replace("length = length(last_name), ", "")
    newer = newer_code(tmp_path / "newer", ADDS_A_COLUMN, forgets, size=10, pause=0)
    code, _ = run_cli(ada.app, "db", "upgrade", "--directory", newer)
    assert code == 1
    assert rows(ada.app, "SELECT rewritten FROM patients") == [(0,)]
