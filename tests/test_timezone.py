"""The zone that times were entered under is kept in the database, and changed only by `flask timezone`."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from client import Client, assert_refused, migrate, run_cli
from factories import USUAL, make_appointment, make_patient, sign_in, sign_up
from flask import Flask
from sql import dispose, snapshot, sql

from app import create_app
from clinic.timezone import ENTERED
from server.database import UTCDateTime, db

ZONE = "SELECT timezone FROM clinic"
WHOLE = (0, "The history is whole.\n")


@pytest.fixture
def clinic(own_app: Flask) -> Flask:
    """A clinic that began under UTC, with an administrator."""
    sign_up(own_app, "Ada", "admin")
    return own_app


@contextmanager
def moved_to(app: Flask, zone: str) -> Iterator[Flask]:
    """The same clinic with another TIMEZONE."""
    same = {name: app.config[name] for name in ("DATABASE_URL", "INSTANCE_PATH", "JWT_SECRET_KEY", "SECRET_KEY")}
    other = create_app({**USUAL, **same, "TIMEZONE": zone})
    yield other
    dispose(other)


def changed(app: Flask, *arguments: str) -> str:
    """What `flask timezone` prints when it succeeds. Changes the setting of this application, too, as an operator."""
    code, said = run_cli(app, "timezone", *arguments)
    assert code == 0, said
    return said


# --- What stops a server ---


def test_the_first_write_stores_the_zone(own_app: Flask) -> None:
    assert Client(own_app).get("/readyz").status_code == 200
    assert sql(own_app, ZONE) == []
    sign_up(own_app, "Ada", "admin")
    assert sql(own_app, ZONE) == [("UTC",)]


def test_another_zone_serves_nothing_and_says_what_to_do(clinic: Flask) -> None:
    before = snapshot(clinic)
    with moved_to(clinic, "Africa/Nairobi") as other:
        refused = Client(other).get("/readyz")
        assert_refused(refused, 503)
        assert "were entered under UTC" in refused.json["msg"]
        assert "flask timezone Africa/Nairobi" in refused.json["msg"]
        for command in ("check", "seed", "purge", "reindex"):
            code, said = run_cli(other, command)
            assert (code, "were entered under UTC" in said) == (1, True), command
        assert run_cli(other, "audit", "verify") == WHOLE
        assert Client(other).get("/").json["timezone"] == "Africa/Nairobi"
    assert run_cli(clinic, "check") == (0, "")
    assert snapshot(clinic) == before


def test_a_server_that_was_there_before_the_change_writes_nothing_more(clinic: Flask) -> None:
    ada = sign_in(clinic, "Ada")
    with moved_to(clinic, "UTC") as elsewhere:
        changed(elsewhere, "Africa/Nairobi")
    refused = ada.post("/patients", {"first_name": "A", "last_name": "B", "phone_number": "0712345678"})
    assert_refused(refused, 503)
    assert sql(clinic, "SELECT count(*) FROM patients") == [(0,)]


def test_of_servers_with_two_zones_that_start_together_one_writes(own_app: Flask) -> None:
    with moved_to(own_app, "Africa/Nairobi") as other:
        answers: dict[str, int] = {}

        def write(app: Flask, name: str) -> None:
            body = {"first_name": name, "last_name": "O", "email": f"{name}@clinic.test", "password": "a b c d e f g"}
            answers[name] = Client(app).post("/signup", body).status_code

        threads = [threading.Thread(target=write, args=pair) for pair in ((own_app, "ada"), (other, "otto"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers.values()) == [201, 503]
    kept = "UTC" if answers["ada"] == 201 else "Africa/Nairobi"
    assert sql(own_app, ZONE) == [(kept,)]
    assert sql(own_app, "SELECT count(*) FROM users") == [(1,)]


def test_a_landed_database_with_records_asks_for_its_zone(clinic: Flask) -> None:
    make_patient(sign_in(clinic, "Ada"))
    sql(clinic, "UPDATE clinic SET timezone = NULL")
    with moved_to(clinic, "UTC") as updated:
        refused = Client(updated).get("/readyz")
        assert_refused(refused, 503)
        assert "flask timezone UTC" in refused.json["msg"]
        code, said = run_cli(updated, "timezone", "Africa/Nairobi", "--keep-wall-clock")
        assert (code, "Nothing was changed" in said) == (1, True)
        assert sql(clinic, ZONE) == [(None,)]
        changed(updated, "UTC")
        assert sign_in(updated, "Ada").get("/patients").status_code == 200
        assert run_cli(updated, "audit", "verify") == WHOLE


def test_a_landed_database_without_records_takes_the_setting(bare_app: Flask) -> None:
    migrate(bare_app, "upgrade", "0010")
    migrate(bare_app, "upgrade")
    assert run_cli(bare_app, "check") == (0, "")
    sign_up(bare_app, "Ada", "admin")
    assert sql(bare_app, ZONE) == [("UTC",)]


def test_a_zone_that_is_none_is_refused(clinic: Flask) -> None:
    for zone in ("Mars/Olympus", "../../etc/passwd", "", "Nairobi", "localtime", "Factory"):
        code, said = run_cli(clinic, "timezone", zone)
        assert (code, "no such IANA time zone" in said) == (2, True), zone
    assert sql(clinic, ZONE) == [("UTC",)]


def test_every_time_is_entered_by_staff_or_the_servers_own() -> None:
    """A new column of times must be named here, so that nobody forgets whether a change of the zone moves it."""
    entered = {f"{kind.__tablename__}.{name}" for kind, names in ENTERED.items() for name in names}
    servers = {"created_at", "updated_at", "deleted_at", "started_at", "claimed_at", "last_used_at", "expires_at"}
    servers |= {"ended_at", "last_try_at", "locked_until", "at", "seen_at"}
    columns = [column for table in db.metadata.tables.values() for column in table.c]
    times = {f"{column.table.name}.{column.name}" for column in columns if isinstance(column.type, UTCDateTime)}
    assert entered < times
    assert {name.partition(".")[2] for name in times - entered} == servers


# --- Changing the zone ---


def clocks(client: Client) -> list[Any]:
    """Every time that staff entered, as the clinic shows it, without the offset."""
    appointments = [one["appointment_datetime"][:16] for one in client.get("/appointment").json]
    stays = [
        one[name] and one[name][:16]
        for one in client.get("/patients").json
        for name in ("admitted_at", "discharged_at")
    ]
    return appointments + stays


def instants(app: Flask) -> list[Any]:
    return [
        *sql(app, "SELECT appointment_datetime FROM appointments ORDER BY id"),
        *sql(app, "SELECT admitted_at, discharged_at FROM patients ORDER BY id"),
    ]


def a_busy_day(app: Flask) -> Client:
    """Twelve appointments one after the other, some archived or cancelled, and patients with a stay."""
    ada = sign_in(app, "Ada")
    for number in range(3):
        make_patient(ada, admitted_at=f"2026-03-0{number + 1}T08:30", discharged_at="2026-04-01T10:00", status="healed")
    make_patient(ada, status="outpatient")
    for number in range(12):
        made = make_appointment(
            ada, number % 4 + 1, f"2031-03-{3 + number % 2:02}T{8 + number // 2:02}:00", duration_minutes=60
        )
        if number == 5:
            ada.delete(f"/appointment/{made['id']}")
        if number == 6:
            ada.patch(f"/appointment/{made['id']}", {"status": "cancelled"})
    return ada


ZONES = ["Africa/Nairobi", "America/New_York", "Pacific/Kiritimati", "Asia/Kathmandu"]


@pytest.mark.parametrize("zone", ZONES)
def test_without_the_option_every_instant_stays(clinic: Flask, zone: str) -> None:
    a_busy_day(clinic)
    before = instants(clinic)
    assert f"The zone is {zone}." in changed(clinic, zone)
    with moved_to(clinic, zone) as there:
        assert instants(there) == before
        assert run_cli(there, "check") == (0, "")
        assert run_cli(there, "audit", "verify") == WHOLE


@pytest.mark.parametrize(
    "zone", ["Africa/Nairobi", "America/New_York", "Pacific/Kiritimati", "Asia/Kathmandu", "Africa/Abidjan"]
)
def test_with_it_every_clock_shows_what_it_showed(clinic: Flask, zone: str) -> None:
    ada = a_busy_day(clinic)
    shown, before = clocks(ada), instants(clinic)
    dry = changed(clinic, zone, "--keep-wall-clock", "--dry-run")
    assert (instants(clinic), sql(clinic, ZONE)) == (before, [("UTC",)])
    said = changed(clinic, zone, "--keep-wall-clock")
    counts = [int(number) for number in re.findall(r": moved: (\d+)", said)]
    assert counts == [int(number) for number in re.findall(r": would move: (\d+)", dry)]
    assert counts == ([0, 0, 0] if zone == "Africa/Abidjan" else [12, 3, 3])
    assert "came with an offset" in said
    with moved_to(clinic, zone) as there:
        dora = sign_in(there, "Ada")
        assert clocks(dora) == shown
        assert run_cli(there, "audit", "verify") == WHOLE
        entries = dora.get("/audit?kind=clinic").json
        assert entries[0]["changes"] == {"timezone": {"from": "UTC", "to": zone}}
        if counts[0]:
            first = dora.get("/appointment/1/history").json[-1]
            assert (first["action"], first["changes"]["appointment_datetime"]["to"][:16]) == ("change", shown[0])
    assert changed(clinic, "UTC", "--keep-wall-clock")
    assert instants(clinic) == before


def test_where_two_would_overlap_both_are_named_and_nothing_is_changed(clinic: Flask) -> None:
    """In New York two o'clock is three o'clock on 9 March 2031."""
    ada = sign_in(clinic, "Ada")
    for hour in ("01:00", "02:00", "03:00", "07:00"):
        make_appointment(ada, make_patient(ada)["id"], f"2031-03-09T{hour}")
    before = snapshot(clinic)
    code, said = run_cli(clinic, "timezone", "America/New_York", "--keep-wall-clock")
    assert code == 1
    assert "Appointments 2 (2031-03-09 02:00) and 3 (2031-03-09 03:00) would overlap" in said
    assert "Nothing was changed." in said
    assert (snapshot(clinic), sql(clinic, ZONE)) == (before, [("UTC",)])


def test_absences_move_with_the_appointments_and_hours_stay_on_the_clock(clinic: Flask) -> None:
    ada = sign_in(clinic, "Ada")
    patient = make_patient(ada)["id"]
    week = [{"weekday": "mon", "from": "08:00", "to": "12:00"}]
    ada.send("PUT", "/user/1/hours", week)
    # each of these moves to where the next one was; the last one ends after a change of the clocks
    for hour in range(8, 12):
        absent = {"starts_at": f"2030-03-04T{hour:02}:00", "ends_at": f"2030-03-04T{hour + 1:02}:00"}
        assert ada.post("/user/1/absences", absent).status_code == 201
    assert ada.post("/user/1/absences", {"starts_at": "2030-10-01", "ends_at": "2030-12-01"}).status_code == 201
    make_appointment(ada, patient, "2030-03-04T07:30", off_hours=True)
    before = [(one["starts_at"][:16], one["ends_at"][:16]) for one in ada.get("/user/1/absences").json]
    for zone in ("Africa/Casablanca", "Europe/Berlin", "America/New_York", "UTC"):
        said = changed(clinic, zone, "--keep-wall-clock")
        assert "absences.starts_at" in said
        with moved_to(clinic, zone) as there:
            now = Client(there, ada.token)
            shown = now.get("/user/1/absences").json
            assert [(one["starts_at"][:16], one["ends_at"][:16]) for one in shown] == before
            assert now.get("/appointment").json[0]["appointment_datetime"][:16] == "2030-03-04T07:30"
            assert now.get("/user/1/hours").json == week
    assert "whole" in run_cli(clinic, "audit", "verify")[1]


def test_a_time_that_the_new_zone_lacks_is_the_end_of_the_gap_and_is_named(clinic: Flask) -> None:
    ada = sign_in(clinic, "Ada")
    make_appointment(ada, make_patient(ada)["id"], "2031-03-30T02:30")
    said = changed(clinic, "Europe/Berlin", "--keep-wall-clock")
    assert "the end of the gap stands for it: appointment 1" in said
    with moved_to(clinic, "Europe/Berlin") as there:
        assert clocks(sign_in(there, "Ada"))[0] == "2031-03-30T03:00"


def test_what_the_server_set_itself_stays(clinic: Flask) -> None:
    make_patient(sign_in(clinic, "Ada"))  # admitted now
    before = instants(clinic)
    assert before[0][0] is not None
    changed(clinic, "America/New_York", "--keep-wall-clock")
    assert instants(clinic) == before


def test_a_stay_that_would_end_before_it_begins_stops_the_change(clinic: Flask) -> None:
    """From the first 01:50 to the second 01:10: without the change of the clocks that would be backwards."""
    changed(clinic, "America/New_York")
    with moved_to(clinic, "America/New_York") as there:
        stay = {"admitted_at": "2025-11-02T01:50:00-04:00", "discharged_at": "2025-11-02T01:10:00-05:00"}
        make_patient(sign_in(there, "Ada"), status="healed", **stay)
        before = snapshot(there)
        code, said = run_cli(there, "timezone", "UTC", "--keep-wall-clock")
        assert (code, "The discharge of patient 1" in said, "Nothing was changed." in said) == (1, True, True)
        assert snapshot(there) == before


def test_a_server_that_runs_on_notices_at_its_next_write_or_readyz(clinic: Flask) -> None:
    ada = sign_in(clinic, "Ada")
    with moved_to(clinic, "UTC") as elsewhere:
        changed(elsewhere, "Africa/Nairobi")
    assert ada.get("/patients").status_code == 200
    assert_refused(ada.get("/readyz"), 503)
    assert_refused(ada.get("/patients"), 503)


def test_a_database_without_its_schema_is_told_to_be_upgraded(bare_app: Flask) -> None:
    code, said = run_cli(bare_app, "timezone", "UTC")
    assert (code, "flask db upgrade" in said) == (1, True)


def test_an_empty_database_keeps_no_clocks_and_takes_the_zone(own_app: Flask) -> None:
    changed(own_app, "Africa/Nairobi", "--keep-wall-clock")
    assert sql(own_app, ZONE) == [("Africa/Nairobi",)]
