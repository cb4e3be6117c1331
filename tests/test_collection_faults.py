"""Collections: bad input, and connections that break or are not read."""

import json
import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest
from client import Client, all_pages, assert_refused, next_of, stream_of
from factories import MakeApp, make_appointment, make_patient, make_report, many_patients
from flask import Flask
from sql import connections_in_use, sql

TOO_MANY = "x" * 10_000


# --- Bad input ---


@pytest.mark.parametrize("path", ["/patients", "/users", "/appointment", "/reports"])
@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=501", "limit"),
        ("limit=abc", "limit"),
        ("limit=", "limit"),
        ("limit=1.5", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=5&limit=6", "limit"),
        ("limit=5&cursor=made-up", "cursor"),
        ("limit=5&cursor=", "cursor"),
        ("limit=5&cursor=W10", "cursor"),
        ("limit=5&cursor=%00%ff", "cursor"),
        ("limit=5&cursor=" + "x" * 3000, "cursor"),
        ("cursor=abc", "cursor"),
        ("sort=shoe_size", "sort"),
        ("sort=password", "sort"),
        ("sort=", "sort"),
        ("sort=id&sort=-id", "sort"),
        ("total=perhaps", "total"),
        ("offset=10", "offset"),
        ("page=2", "page"),
        ("page[]=2", "page[]"),
        ("limit[]=5", "limit[]"),
        ("sort%5B%5D=id", "sort[]"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(doctor: Client, path: str, asked: str, field: str) -> None:
    assert_refused(doctor.get(f"{path}?{asked}"), 422, field)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/patients?status=well", "status"),
        ("/patients?admitted_from=yesterday", "admitted_from"),
        ("/patients?admitted_to=2026-13-01", "admitted_to"),
        ("/patients?q=" + TOO_MANY, "q"),
        ("/patients?q=a%00b", "q"),
        ("/patients?q=amina&sort=id", "sort"),
        ("/patients?role=doctor", "role"),
        ("/users?role=nurse", "role"),
        ("/users?is_active=perhaps", "is_active"),
        ("/appointment?user_id=0", "user_id"),
        ("/appointment?user_id=99999999999", "user_id"),
        ("/appointment?patient_id=abc", "patient_id"),
        ("/appointment?from=noon", "from"),
        ("/appointment?from_=2030-01-01", "from_"),
        ("/appointment?q=amina", "q"),
        ("/reports?status=admitted", "status"),
        ("/appointment?" + "&".join(f"user_id={n}" for n in range(1, 102)), "user_id"),
    ],
)
def test_a_wrong_filter_is_refused_by_name(doctor: Client, path: str, field: str) -> None:
    assert_refused(doctor.get(path), 422, field)


def test_a_cursor_is_good_for_its_own_collection_order_and_filters_alone(app: Flask, doctor: Client) -> None:
    for number in range(3):
        patient = make_patient(doctor)["id"]
        make_report(doctor, patient)
        make_appointment(doctor, patient, f"2030-03-0{number + 1}T10:00")
    following = next_of(doctor.get("/patients?limit=1&sort=last_name&status=admitted"))
    assert following
    [cursor] = parse_qs(urlsplit(following).query)["cursor"]
    assert doctor.get(f"/patients?limit=2&sort=last_name&status=admitted&cursor={cursor}").status_code == 200
    for other in (
        "/patients?limit=1&sort=last_name",
        "/patients?limit=1&sort=-last_name&status=admitted",
        "/patients?limit=1&status=admitted",
        "/patients?limit=1&sort=last_name&status=critical",
        "/patients?limit=1&q=amina&status=admitted",
        "/users?limit=1&sort=last_name",
        "/appointment?limit=1",
        "/reports?limit=1",
    ):
        assert_refused(doctor.get(f"{other}&cursor={cursor}"), 422, "cursor")
    following = next_of(doctor.get("/patients?limit=1&q=a"))
    [searched] = parse_qs(urlsplit(following or "").query)["cursor"]
    assert_refused(doctor.get(f"/patients?limit=1&q=am&cursor={searched}"), 422, "cursor")
    changed = cursor[:-2] + ("AA" if cursor[-2:] != "AA" else "BB")
    assert_refused(doctor.get(f"/patients?limit=1&sort=last_name&status=admitted&cursor={changed}"), 422, "cursor")


# --- Connections ---


def test_a_client_that_hangs_up_in_the_middle_leaves_no_connection_behind(app: Flask, doctor: Client) -> None:
    many_patients(app, 2000)
    before = connections_in_use(app)
    for read in (0, 1, 2):
        answer = stream_of(app, doctor)
        pieces = iter(answer)
        for _ in range(read):
            next(pieces)
        assert connections_in_use(app) == before + 1
        answer.close()
        assert connections_in_use(app) == before
    assert len(doctor.get("/patients").json) == 2000


def test_a_stream_has_one_connection_and_other_requests_none(app: Flask, doctor: Client) -> None:
    many_patients(app, 1200)
    answers = [stream_of(app, doctor) for _ in range(3)]
    assert connections_in_use(app) == 3
    for path in ("/patient/1", "/patients?limit=3", "/me", "/users", "/nowhere", "/patients?limit=0", "/patient/99999"):
        doctor.get(path)
        assert connections_in_use(app) == 3
    assert [len(json.loads(b"".join(answer))) for answer in answers] == [1200] * 3
    for answer in answers:
        answer.close()
    assert connections_in_use(app) == 0


def test_a_stream_shows_one_state_of_the_database_though_others_write(app: Flask, doctor: Client) -> None:
    many_patients(app, 1200)  # none of whom has been admitted
    sql(app, "UPDATE patients SET admitted_at = '2020-01-01 00:00:00.000000' WHERE id <= 600")
    stream = stream_of(app, doctor, "/patients?sort=admitted_at")
    pieces = iter(stream)
    read = [next(pieces)]
    doctor.patch("/patient/1", {"admitted_at": None})  # read already, and would come again at the end
    doctor.patch("/patient/1200", {"admitted_at": "2019-01-01"})  # to come, and would have been at the beginning
    read += pieces
    stream.close()
    assert sorted(row["id"] for row in json.loads(b"".join(read))) == list(range(1, 1201))


def test_what_fails_before_the_first_row_is_an_error_and_leaves_no_connection(app: Flask, doctor: Client) -> None:
    sql(app, "ALTER TABLE patients RENAME TO lost")
    try:
        assert doctor.get("/patients").status_code == 500
        assert connections_in_use(app) == 0
    finally:
        sql(app, "ALTER TABLE lost RENAME TO patients")


def test_a_page_leads_on_though_offsets_had_seconds(
    app: Flask, doctor: Client, at_home: Callable[[Client, str], Client]
) -> None:
    """On PostgreSQL they come from its own time zone, which is that of its server or role."""
    for _ in range(3):
        make_patient(doctor, admitted_at="1970-05-01T10:00:00Z")
    if app.config["DATABASE_URL"].startswith("postgresql"):
        sql(app, f"ALTER DATABASE {sql(app, 'SELECT current_database()')[0][0]} SET timezone = 'Africa/Monrovia'")
    there = at_home(doctor, "Africa/Monrovia")
    try:
        for order in ("admitted_at", "-admitted_at"):
            assert sorted(all_pages(there, f"/patients?limit=1&admitted_to=1971-01-01&sort={order}")) == [1, 2, 3]
    finally:
        if app.config["DATABASE_URL"].startswith("postgresql"):
            sql(app, f"ALTER DATABASE {sql(app, 'SELECT current_database()')[0][0]} RESET timezone")


def test_an_old_offset_with_seconds_is_told_in_full_in_a_page_too(
    doctor: Client, at_home: Callable[[Client, str], Client]
) -> None:
    there = at_home(doctor, "Africa/Monrovia")  # 44 minutes and 30 seconds behind, until 1972
    alone = make_patient(there, admitted_at="1970-05-01T10:00:00")
    assert alone["admitted_at"] == "1970-05-01T10:00:00-00:44:30"
    assert there.get("/patients").json == there.get("/patients?limit=1").json == [alone]


def test_what_fails_later_breaks_the_connection_and_never_closes_the_array(
    app: Flask, doctor: Client, at_home: Callable[[Client, str], Client]
) -> None:
    many_patients(app, 1500)
    sql(app, "UPDATE patients SET created_at = '0001-01-01 00:00:00.000000' WHERE id = 1200")  # in New York: the year 0
    served = at_home(doctor, "America/New_York").app
    answer = stream_of(served, doctor)
    sent: list[bytes] = []
    with pytest.raises(OverflowError):
        sent.extend(answer)
    answer.close()
    assert sent[0].startswith(b"[{")
    assert b'"id":1000,' in sent[-1]
    assert not sent[-1].endswith(b"]")
    assert connections_in_use(served) == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_statement_that_takes_too_long_is_given_up(app: Flask, make_app: MakeApp, doctor: Client) -> None:
    hurried = Client(make_app(STATEMENT_TIMEOUT=1, JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"]), doctor.token)
    patient = make_patient(hurried)
    with psycopg2.connect(app.config["DATABASE_URL"].replace("+psycopg2", "")) as connection:
        connection.cursor().execute("LOCK TABLE patients IN ACCESS EXCLUSIVE MODE")
        for ask in (
            lambda: hurried.get("/patient/1"),
            lambda: hurried.get("/patients"),
            lambda: hurried.get("/patients?limit=5"),
            lambda: hurried.patch("/patient/1", {"first_name": "Zawadi"}),
        ):
            began = time.monotonic()
            assert_refused(ask(), 503)
            assert time.monotonic() - began < 20
        connection.rollback()
    connection.close()
    assert hurried.get("/patient/1").json == patient
    assert connections_in_use(hurried.app) == 0
