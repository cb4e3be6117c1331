"""Free slots, against a model that looks at every minute, and the bad searches."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import product
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from client import Client, assert_refused
from factories import make_appointment, make_patient, sign_up
from flask import Flask
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from remembered import signed_in
from sql import sql

from testing.statements import counted_statements

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# half hours and quarters, a change of half an hour, changes at midnight in either direction, no change at all
ZONES = (
    *("America/New_York", "Australia/Lord_Howe", "America/Santiago", "America/Havana"),
    *("Africa/Cairo", "Asia/Kathmandu", "Asia/Kolkata", "UTC"),
)

# --- The model: which minutes are free? ---


@cache
def minutes_of(zone: str, day: date) -> list[tuple[datetime, int]]:
    """Every minute that has this date on the clocks of the zone, and what the clocks then show, in minutes."""
    first = datetime(day.year, day.month, day.day, tzinfo=UTC) - DAY
    shown = ((first + n * MINUTE, (first + n * MINUTE).astimezone(ZoneInfo(zone))) for n in range(3 * 1440))
    return [(instant, local.hour * 60 + local.minute) for instant, local in shown if local.date() == day]


def working(zone: str, day: date, hours: list[tuple[int, int, int]]) -> set[datetime]:
    found: set[datetime] = set()
    minutes = minutes_of(zone, day)
    for _, starts, ends in (one for one in hours if one[0] == day.weekday()):
        begin = next((instant for instant, clock in minutes if clock >= starts), None)
        shows_end = [instant for instant, clock in minutes if clock == ends]
        before = [instant + MINUTE for instant, clock in minutes if clock < ends]
        end = shows_end[-1] if shows_end else max(before, default=None)
        found |= {instant for instant, _ in minutes if begin and end and begin <= instant < end}
    return found


def is_start_of_week(zone: str, instant: datetime) -> bool:
    monday = instant.astimezone(ZoneInfo(zone)).date()
    return monday.weekday() == 0 and minutes_of(zone, monday)[0][0] == instant


def modelled(
    zone: str,
    hours: list[tuple[int, int, int]],
    busy: list[tuple[datetime, datetime]],
    elsewhere: list[tuple[datetime, datetime]],
    start: datetime,
    end: datetime,
    minutes: int,
) -> list[datetime]:
    first = start.astimezone(ZoneInfo(zone)).date() - 9 * DAY
    free: set[datetime] = set()
    for n in range((end.astimezone(ZoneInfo(zone)).date() - first).days + 1):
        free |= working(zone, first + n * DAY, hours)
    for begins, ends in busy:
        free -= {begins + n * MINUTE for n in range(int((ends - begins) / MINUTE))}
    whole_week = sum(ends - starts for _, starts, ends in hours) == 7 * 1440
    length, found, at = minutes * MINUTE, [], None
    for instant in sorted(free):
        begins_here = instant - MINUTE not in free or (whole_week and is_start_of_week(zone, instant))
        if begins_here:
            at = instant + timedelta(minutes=-(instant.minute % 5) % 5)
        if instant != at:
            continue
        at = at + length
        slot = [instant + n * MINUTE for n in range(minutes)]
        crosses = whole_week and any(is_start_of_week(zone, part) for part in slot[1:])
        is_elsewhere = any(begins < at and ends > instant for begins, ends in elsewhere)
        if set(slot) <= free and not crosses and start <= instant and at <= end and not is_elsewhere:
            found.append(instant)
    return found


# --- The world that the model and the server look at ---


def changes_of(zone: str) -> list[date]:
    """The days of 2030 on which the clocks are changed, or an ordinary day."""
    noons = [datetime(2030, 1, 1, 12, tzinfo=ZoneInfo(zone)) + n * DAY for n in range(365)]
    near = [noon.date() for noon in noons if (noon - DAY).utcoffset() != (noon + DAY).utcoffset()]
    return [day for day in near if len(minutes_of(zone, day)) != 1440] or [date(2030, 3, 3)]


@st.composite
def weeks(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    if draw(st.integers(0, 9)) == 0:
        return [(day, 0, 1440) for day in range(7)]
    clocks = st.sampled_from([0, 5, 30, 60, 90, 120, 150, 180, 423, 720, 1380, 1410, 1435, 1440])
    found = []
    for day in range(7):
        cuts = sorted(draw(st.sets(clocks, max_size=4)))
        found += [(day, starts, ends) for starts, ends in zip(cuts[::2], cuts[1::2], strict=False)]
    return found or [(0, 0, 1440)]


spans = st.lists(st.tuples(st.integers(-2000, 4000), st.sampled_from([5, 7, 30, 60, 480])), max_size=5)


EVERY = range(7)
TELLING = (
    [(day, 0, 1440) for day in EVERY],  # around the clock
    [(day, 0, 1440) for day in range(6)] + [(6, 3, 1430)],  # hours that began days ago
    [(day, *hours) for day in EVERY for hours in ((0, 90), (100, 150), (1400, 1440))],  # bounds in a repeated hour
    [(day, *hours) for day in EVERY for hours in ((30, 60), (120, 180), (1380, 1410))],
)


def with_examples(days: list[date]) -> Callable[[Any], Any]:
    """Adds to a test the weeks that tell mistakes, on each of the days."""

    def decorate(test: Any) -> Any:
        for day, week in product(days, TELLING):
            usual = {"taken": [(1000, 7)], "away": [], "absent": (3000, 1), "window": (-200, 3000)}
            test = example(week=week, day=day, **{**usual, "minutes": 50 if len(week) < 8 else 5})(test)
        return test

    return decorate


@pytest.fixture
def desk(app: Flask, admin: Client, doctor: Client, at_home: Callable[..., Client]) -> Callable[[str], Client]:
    return lambda zone: at_home(doctor, zone)


@pytest.mark.parametrize("zone", ZONES)
def test_the_slots_are_those_that_can_be_booked(
    app: Flask, desk: Callable[[str], Client], other_doctor: Client, zone: str
) -> None:
    home = desk(zone)
    other = Client(home.app, other_doctor.token, other_doctor.user)
    patients = [make_patient(home)["id"] for _ in range(2)]
    me = home.user["id"]

    def booked(client: Client, patient: int, at: datetime, minutes: int) -> tuple[datetime, datetime] | None:
        body = {"patient_id": patient, "appointment_datetime": at.isoformat(), "duration_minutes": minutes}
        answer = client.post("/appointment", {**body, "off_hours": True})
        return (at, at + minutes * MINUTE) if answer.status_code == 201 else None

    @settings(
        max_examples=5,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        week=weeks(),
        day=st.sampled_from(changes_of(zone)),
        taken=spans,
        away=spans,
        absent=st.tuples(st.integers(-3000, 3000), st.integers(1, 2000)),
        window=st.tuples(st.integers(-1440, 1440), st.integers(30, 3500)),
        minutes=st.sampled_from([5, 20, 30, 50, 60, 480]),
    )
    @with_examples(changes_of(zone))
    def compare(
        week: list[tuple[int, int, int]],
        day: date,
        taken: list[tuple[int, int]],
        away: list[tuple[int, int]],
        absent: tuple[int, int],
        window: tuple[int, int],
        minutes: int,
    ) -> None:
        sql(app, *(f"DELETE FROM {table}" for table in ("appointments", "absences", "working_hours")))
        midnight = minutes_of(zone, day)[0][0]
        hours = [
            {"weekday": DAYS[n], "from": f"{a // 60:02}:{a % 60:02}", "to": f"{b // 60:02}:{b % 60:02}"}
            for n, a, b in week
        ]
        assert home.send("PUT", f"/user/{me}/hours", hours).status_code == 200
        busy = [booked(home, patients[0], midnight + start * MINUTE, length) for start, length in taken]
        elsewhere = [booked(other, patients[1], midnight + start * MINUTE, length) for start, length in away]
        begins = midnight + absent[0] * MINUTE
        body = {"starts_at": begins.isoformat(), "ends_at": (begins + absent[1] * MINUTE).isoformat()}
        if home.post(f"/user/{me}/absences", body).status_code == 201:
            busy.append((begins, begins + absent[1] * MINUTE))
        start = midnight + window[0] * MINUTE
        end = start + window[1] * MINUTE
        query = {"user_id": me, "from": start.isoformat(), "to": end.isoformat(), "limit": 500}
        answer = home.get("/slots", query_string={**query, "minutes": minutes, "patient_id": patients[1]})
        assert answer.status_code == 200, answer.json
        offered = [datetime.fromisoformat(slot["start"]).astimezone(UTC) for slot in answer.json]
        taken_spans = [span for span in busy if span]
        others = [span for span in elsewhere if span]
        assert offered == modelled(zone, week, taken_spans, others, start, end, minutes)[:500]
        for at in (*offered[:3], *offered[-2:]) if len(offered) > 4 else offered:
            body = {"patient_id": patients[1], "appointment_datetime": at.isoformat(), "duration_minutes": minutes}
            assert home.post("/appointment", body).status_code == 201

    compare()


# --- The search ---


def slots(client: Client, **query: Any) -> list[tuple[int, str]]:
    answer = client.get("/slots", query_string=query)
    assert answer.status_code == 200, answer.json
    return [(slot["user_id"], slot["start"][:16]) for slot in answer.json]


MONDAY = "2030-03-04"


def test_doctors_without_hours_are_offered_in_the_clinics(doctor: Client, other_doctor: Client) -> None:
    first, second = doctor.user["id"], other_doctor.user["id"]
    found = slots(doctor, **{"from": MONDAY, "to": MONDAY, "minutes": 60, "limit": 500})
    assert found[:3] == [(first, f"{MONDAY}T08:00"), (second, f"{MONDAY}T08:00"), (first, f"{MONDAY}T09:00")]
    assert (len(found), found[-1]) == (18, (second, f"{MONDAY}T16:00"))
    assert slots(doctor, **{"from": "2030-03-02", "to": "2030-03-03"}) == []  # a Saturday and a Sunday


def test_the_clinics_hours_are_a_setting(app: Flask, make_app: Callable[..., Flask], doctor: Client) -> None:
    late = make_app(CLINIC_HOURS="sat-sun 22:00-24:00, mon 00:00-01:00", JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
    found = slots(Client(late, doctor.token), **{"from": "2030-03-03", "to": MONDAY, "minutes": 60})
    assert [at for _, at in found] == ["2030-03-03T22:00", "2030-03-03T23:00", f"{MONDAY}T00:00"]


@pytest.mark.parametrize(
    "hours", ["", "mon", "mon 8-17", "fri-mon 08:00-12:00", "mon 12:00-08:00", "mon 08:00-10:00 09:00-11:00"]
)
def test_clinic_hours_that_cannot_be_are_refused_at_the_start(make_app: Callable[..., Flask], hours: str) -> None:
    with pytest.raises(SystemExit, match="CLINIC_HOURS"):
        make_app(CLINIC_HOURS=hours)


def test_an_administrator_is_offered_if_named_or_with_hours(
    admin: Client, doctor: Client, receptionist: Client
) -> None:
    day = {"from": MONDAY, "to": MONDAY, "minutes": 480}
    me, desk = admin.user["id"], receptionist.user["id"]
    assert [who for who, _ in slots(admin, **day)] == [doctor.user["id"]]
    assert [who for who, _ in slots(admin, **day, user_id="me")] == [me]
    assert slots(admin, **day, user_id=desk) == slots(receptionist, **day, user_id="me") == []
    admin.send("PUT", f"/user/{me}/hours", [{"weekday": "mon", "from": "08:00", "to": "16:00"}])
    assert [who for who, _ in slots(admin, **day)] == [me, doctor.user["id"]]


def test_inactive_and_archived_doctors_are_not_offered(app: Flask, admin: Client, doctor: Client) -> None:
    day = {"from": MONDAY, "to": MONDAY, "minutes": 480}
    gone, closed = sign_up(app, "Gone")["id"], sign_up(app, "Closed")["id"]
    admin.delete(f"/user/{gone}")
    admin.patch(f"/user/{closed}", {"is_active": False})
    assert [who for who, _ in slots(admin, **day)] == [doctor.user["id"]]
    assert slots(admin, **day, user_id=[gone, closed, 999]) == []


def test_only_what_is_to_come_is_offered(app: Flask, doctor: Client) -> None:
    me = doctor.user["id"]
    doctor.send("PUT", f"/user/{me}/hours", [{"weekday": day, "from": "00:00", "to": "24:00"} for day in DAYS])
    for query in ({}, {"from": "2020-01-01"}):
        first, *_, last = slots(doctor, user_id=me, limit=500, minutes=60, **query)
        now = datetime.now(UTC)
        assert now - MINUTE <= datetime.fromisoformat(f"{first[1]}:00Z") < now + timedelta(minutes=61)
        assert datetime.fromisoformat(f"{last[1]}:00Z") <= now + 14 * DAY
    assert slots(doctor, user_id=me, to="2020-01-01") == []
    late = (datetime.now(UTC) + timedelta(days=3652)).isoformat()
    for _, at in slots(doctor, user_id=me, limit=500, minutes=60, **{"from": late}):
        assert (
            doctor.post("/appointment", {"patient_id": 1, "appointment_datetime": at}).status_code == 422
        )  # no patient
    assert len(slots(doctor, user_id=me, limit=500, minutes=60, **{"from": late})) < 50


def test_from_and_now_do_not_move_the_grid(doctor: Client) -> None:
    me = doctor.user["id"]
    doctor.send("PUT", f"/user/{me}/hours", [{"weekday": "mon", "from": "08:03", "to": "12:00"}])
    found = slots(doctor, user_id=me, minutes=45, **{"from": f"{MONDAY}T09:00", "to": f"{MONDAY}T11:05"})
    assert [at[11:] for _, at in found] == ["09:35", "10:20"]


def test_a_deceased_patient_has_no_slots(doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    assert slots(doctor, patient_id=patient, **{"from": MONDAY})
    doctor.patch(f"/patient/{patient}", {"status": "deceased"})
    assert slots(doctor, patient_id=patient, **{"from": MONDAY}) == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "2030-03-04", "to": "2030-05-05"}, "to"),
        ({"to": "2080-01-01"}, "to"),
        ({"from": "2030-03-04", "to": "2030-03-03"}, "to"),
        ({"from": "soon"}, "from"),
        ({"minutes": 0}, "minutes"),
        ({"minutes": 4}, "minutes"),
        ({"minutes": 481}, "minutes"),
        ({"minutes": "ten"}, "minutes"),
        ({"limit": 501}, "limit"),
        ({"limit": 0}, "limit"),
        ({"patient_id": 999}, "patient_id"),
        ({"patient_id": [1, 2]}, "patient_id"),
        ({"user_id": "you"}, "user_id"),
        ({"user_id": list(range(1, 102))}, "user_id"),
        ({"user_id": list(range(1, 10_001))}, "query"),
        ({"room": 1}, "room"),
    ],
)
def test_a_bad_search_is_refused(doctor: Client, query: dict[str, Any], field: str) -> None:
    assert_refused(doctor.get("/slots", query_string=query), 422, field)


def test_sixty_two_days_are_searched_also_when_the_clocks_are_changed(
    doctor: Client, at_home: Callable[..., Client]
) -> None:
    york = at_home(doctor, "America/New_York")
    for start, end in (("2030-02-01", "2030-04-03"), ("2030-10-01", "2030-12-01")):
        assert york.get("/slots", query_string={"from": start, "to": end}).status_code == 200


def test_the_number_of_statements_does_not_depend_on_how_much_there_is(app: Flask, admin: Client) -> None:
    def said() -> int:
        with counted_statements(app) as statements:
            slots(admin, **{"from": MONDAY, "limit": 500})
        return len(statements)

    doctors = doctors_of(app)
    next(doctors)
    assert said() <= 4
    for doctor in (next(doctors) for _ in range(5)):
        doctor.send("PUT", f"/user/{doctor.user['id']}/hours", [{"weekday": "mon", "from": "08:00", "to": "20:00"}])
        make_appointment(doctor, make_patient(doctor)["id"], f"{MONDAY}T10:00")
    assert said() <= 5  # the first days are looked at first


def doctors_of(app: Flask) -> Iterator[Client]:
    for number in range(10):
        yield signed_in(app, f"Doc{number}", "doctor")
