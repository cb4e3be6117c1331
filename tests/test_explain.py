"""Every page, search and filter uses an index on both engines: it reads as few rows of a large table as of a small."""

import itertools
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from client import Client, next_of
from factories import make_patient, sign_in, sign_up
from flask import Flask
from sql import empty_tables, sql
from sqlalchemy import insert

from models import Appointment, AuditEntry, Report
from testing.fill import RARE, fill
from testing.statements import counted_statements

ROWS = 20_000
LIMIT = 20
MOST_STEPS = 20_000  # of SQLite's machine, of which each row takes some
MOST_ROWS = 1_000  # that a page of 20 may touch: 16 branches with 21 rows each, and their names and images

BORN = "1950-05-06"
PATIENTS = [
    *(f"sort={sign}{order}{status}" for order in ("id", "last_name", "admitted_at") for sign in ("", "-")
      for status in ("", "&status=admitted", "&status=admitted&status=outpatient&status=critical")),
    "admitted_from=2020-03-01",
    "admitted_to=2020-03-01&sort=-admitted_at",
    "admitted_from=2020-03-01&admitted_to=2020-03-02&status=admitted",
    *(f"q={q}{status}" for q in (RARE, "k", "1", "2547", "zebra", f"{RARE}+ka", "<5")
      for status in ("", "&status=admitted")),
    f"q={RARE}&admitted_from=2020-03-01",
    *(f"q={q}" for q in (BORN, f"{RARE}+{BORN}", f"ka+{BORN}", "0712345678", "%2B254712345678", "0025471", "5/6/1950")),
    *(f"date_of_birth={BORN}{asked}" for asked in (
        "", "&date_of_birth=1950-05-07", "&status=admitted", "&status=admitted&sort=last_name", "&sort=-last_name",
        "&sort=-admitted_at", "&admitted_from=2020-03-01", "&q=k")),
]  # fmt: skip
APPOINTMENTS = [
    *(f"sort={sign}{order}{asked}" for order in ("id", "appointment_datetime") for sign in ("", "-")
      for asked in ("", "&user_id=5", "&user_id=1", "&user_id=5&user_id=6", "&patient_id=7", "&status=scheduled",
                    "&status=pending&status=scheduled")),
    "from=2020-01-05",
    "from=2020-01-05&to=2020-01-06&user_id=5",
    "to=2020-01-05&status=scheduled&sort=-appointment_datetime",
    *(f"patient_id=7{asked}{sort}" for sort in ("", "&sort=-id", "&sort=appointment_datetime") for asked in (
        "&status=scheduled", "&user_id=5", "&user_id=5&user_id=6", "&patient_id=8&status=scheduled", "&from=2020-01-05",
        "&user_id=5&status=scheduled&to=2030-01-05")),
    *(f"user_id=5&status=scheduled{asked}" for asked in ("", "&sort=-id", "&from=2020-01-05&to=2020-01-06")),
]  # fmt: skip
REPORTS = [
    *(f"sort={sign}{order}{asked}" for order in ("id", "created_at") for sign in ("", "-")
      for asked in ("", "&user_id=5", "&user_id=1", "&user_id=5&user_id=6", "&patient_id=7")),
    "from=2020-01-05&to=2020-01-06",
    "from=2020-01-05&user_id=5",
    *(f"patient_id=7{asked}{sort}" for sort in ("", "&sort=-created_at")
      for asked in ("&user_id=5", "&user_id=5&user_id=6", "&to=2030-01-05")),
]  # fmt: skip
USERS = ["sort=id", "sort=-last_name", "q=doctor", "q=no7"]
ASKED = {"patients": PATIENTS, "appointment": APPOINTMENTS, "reports": REPORTS, "users": USERS}
BIG = "patients|appointments|reports|images|patient_words|user_words|audit_entries"


@pytest.fixture(scope="module")
def large(migrated: Flask) -> Iterator[Client]:
    """An administrator of a large clinic, made once for all that is asked there."""
    empty_tables(migrated)
    sign_up(migrated, "Ada", "admin")
    with migrated.app_context():
        fill(migrated.extensions["sqlalchemy"].engine, patients=ROWS, appointments=ROWS, reports=ROWS, doctors=20)
    yield sign_in(migrated, "Ada")
    empty_tables(migrated)


def statements_of(client: Client, path: str) -> tuple[list[str], str | None]:
    """What the page asks of the database, the guard aside, and the address of the next one."""
    with counted_statements(client.app) as statements:
        response = client.get(path)
    assert response.status_code == 200, response.json
    return [statement for statement in statements if "login_sessions" not in statement], next_of(response)


def test_every_page_goes_by_an_index(large: Client) -> None:
    bad = []
    for collection, several in ASKED.items():
        for asked in several:
            path: str | None = f"/{collection}?limit={LIMIT}&{asked}"
            for number in (1, 2):
                if path is None:
                    break
                here = path
                [statement], path = statements_of(large, here)
                bad += [f"{here.partition('&cursor')[0]}, page {number}: {why}" for why in faults(large.app, statement)]
    assert not bad, "\n".join(bad)


AUDIT = [
    "limit=20",
    "limit=20&actor=5",
    "limit=20&kind=patient",
    "limit=20&kind=user",  # of which there is none
    "limit=20&kind=patient&kind=report",
    "limit=20&actor=5&kind=report",
    "limit=20&actor=5&actor=6&kind=patient&kind=report",
    "limit=20&to=2020-01-05",
    "limit=20&from=2020-01-02&to=2020-12-31&kind=patient",
    "limit=20&before=10000",
    "limit=20&actor=5&actor=6&before=10000",
]


def test_every_page_of_the_audit_goes_by_an_index(large: Client) -> None:
    began = datetime(2020, 1, 1, tzinfo=UTC)
    entry = {"seq": 1, "action": "create", "version": 1, "changes": "{}", "digest": "", "mac": ""}
    kinds = ("patient", "report", "appointment")
    entries = [
        {**entry, "kind": kinds[n % 3], "record_id": n, "actor_id": n % 20, "at": began + timedelta(minutes=n)}
        for n in range(100, ROWS)
    ]
    with large.app.app_context(), large.app.extensions["sqlalchemy"].engine.begin() as connection:
        connection.execute(insert(AuditEntry), entries)
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE audit_entries")
    bad = []
    for asked in AUDIT:
        [statement], _ = statements_of(large, f"/audit?{asked}")
        bad += [f"{asked}: {why}" for why in faults(large.app, statement)]
    assert not bad, "\n".join(bad)


def faults(app: Flask, statement: str, most: int = MOST_ROWS) -> Iterator[str]:
    if app.config["DATABASE_URL"].startswith("sqlite"):
        yield from faults_on_sqlite(app, statement)
        return
    [[plan]] = sql(app, "EXPLAIN (ANALYZE, FORMAT JSON) " + statement.replace(":", "\\:"))
    [top] = plan if isinstance(plan, list) else json.loads(plan)
    for node in nodes(top["Plan"]):
        rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        if rows > most:
            yield f"{node['Node Type']} of {node.get('Relation Name', '')} reads {rows:.0f} rows"


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


DEEP = [
    "patients?admitted_from=2020-01-01",
    "patients?admitted_to=2040-01-01&sort=-admitted_at",
    "patients?admitted_from=2020-01-01&status=admitted&status=outpatient",
    "patients?q=k",
    "patients?q=2547",
    "appointment?from=2020-01-01",
    "reports?from=2020-01-01&sort=created_at",
]


def test_a_page_far_down_goes_by_an_index(large: Client) -> None:
    bad = []
    for asked in DEEP:
        path = f"/{asked}&limit=500"
        for _ in range(6):
            path = next_of(large.get(path)) or pytest.fail(f"{asked} ends too early")
        [statement], _ = statements_of(large, path.replace("limit=500", f"limit={LIMIT}"))
        bad += [f"{asked}: {why}" for why in faults(large.app, statement)]
    assert not bad, "\n".join(bad)


def faults_on_sqlite(app: Flask, statement: str) -> Iterator[str]:
    if (steps := steps_on_sqlite(app, statement)) > MOST_STEPS:
        yield f"takes {steps} steps"
    rows = sql(app, "EXPLAIN QUERY PLAN " + statement.replace(":", "\\:"))
    plan = [row[3] for row in rows]
    by_id = re.search(r"ORDER BY (patients|appointments|reports|users)\.id( DESC)?\s+LIMIT", statement)
    for _, parent, _, line in rows:
        if re.match(rf"SCAN ({BIG})$", line) and not by_id:  # the table is in the order of its ids
            yield line
        beside = [row[3] for row in rows if row[1] == parent and re.match("SCAN|SEARCH", row[3])]
        few = (
            "patient_id =" in statement
            or "date_of_birth =" in statement
            or "LIST SUBQUERY" in " ".join(plan)
            or not (beside and re.match(rf"\w+ ({BIG})\b", beside[0]))  # but what a subquery with a limit has found
        )
        if "TEMP B-TREE FOR ORDER BY" in line and not few:
            yield line


def steps_on_sqlite(app: Flask, statement: str) -> int:
    with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as connection:
        steps = itertools.count()
        driver = connection.connection.driver_connection
        driver.set_progress_handler(lambda: next(steps) < 0, 1000)
        driver.execute(statement).fetchall()
        driver.set_progress_handler(None, 0)
    return next(steps) * 1000


@pytest.mark.parametrize("path", ["/patient/77", "/appointment/77", "/reports/77", "/user/7"])
def test_a_record_is_read_by_its_id(large: Client, path: str) -> None:
    with counted_statements(large.app) as statements:
        assert large.get(path).status_code == 200
    [statement] = statements  # the guard's, with the record
    assert "login_sessions" in statement
    assert list(faults(large.app, statement)) == []


def test_duplicates_are_looked_up_by_indexes(large: Client) -> None:
    """Also where one number is that of many, and one name too."""
    patient = make_patient(large, first_name="Kaka", last_name="Zaza", phone_number="0000", date_of_birth=BORN)
    for word in ("0000", "kaka"):
        known = "ON CONFLICT DO NOTHING"
        sql(large.app, f"INSERT INTO patient_words SELECT '{word}', id FROM patients WHERE id % 4 = 1 {known}")
    for address in ("/patient/77", f"/patient/{patient['id']}"):
        _, statement = statements_of(large, f"{address}/duplicates")[0]
        assert list(faults(large.app, statement)) == []


def test_statistics_read_their_span_by_indexes(large: Client) -> None:
    """A minute has a patient and a report, so a day has 1,440. The patients of each status are counted once."""
    (periods, patients, doctors), _ = statements_of(large, "/statistics?from=2020-01-05&to=2020-01-05")
    for statement in (periods, doctors):
        assert [fault for fault in faults(large.app, statement, 1_440) if "ORDER BY" not in fault] == []
    assert patients.count("FROM") == 1


def test_a_page_of_a_long_timeline_reads_as_few_rows_as_of_a_short_one(large: Client) -> None:
    patient = make_patient(large, first_name="Kaka", last_name="Zaza")["id"]
    began, kept = datetime(2020, 1, 1, tzinfo=UTC), {"patient_id": patient, "user_id": 1, "version": 1}
    times = [began + timedelta(hours=n) for n in range(2_000)]
    with large.app.app_context(), large.app.extensions["sqlalchemy"].engine.begin() as connection:
        cancelled = {**kept, "status": "cancelled"}
        connection.execute(insert(Appointment), [{**cancelled, "appointment_datetime": time} for time in times])
        connection.execute(insert(Report), [{**kept, "diagnosis": "Malaria", "created_at": time} for time in times])
    path: str | None = f"/patient/{patient}/timeline?limit={LIMIT}"
    for _ in range(3):
        (_, statement), path = statements_of(large, str(path))
        assert [fault for fault in faults(large.app, statement, 5 * LIMIT) if "ORDER BY" not in fault] == []


def test_a_full_scan_would_be_seen(large: Client) -> None:
    assert list(faults(large.app, "SELECT id FROM patients WHERE doctor_summary = 'x' ORDER BY diagnosis LIMIT 20"))


def test_a_filled_table_is_found_as_any_other(large: Client) -> None:
    """The words that the bench fills in are those that the models write."""
    patient = make_patient(large, first_name="Kaka", last_name=RARE.capitalize(), phone_number="+254799999999")
    filled = large.get("/patient/1").json
    for one in (patient, filled):
        for q in (one["first_name"], one["last_name"], one["mrn"], one["phone_number"], one["phone_number"][-6:]):
            found = large.get("/patients", query_string={"q": f"{RARE} {q}"}).json
            assert one["id"] in [row["id"] for row in found], q
