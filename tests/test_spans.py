"""The spans of collections: what touches them, days of the clinic, and the day of a doctor."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from client import Client, assert_refused
from factories import make_appointment, make_patient, make_report
from flask import Flask

from server import times

AtHome = Callable[[Client, str], Client]


def ids(client: Client, **parameters: object) -> list[int]:
    """The ids of a whole list. Its pages, in both orders, have the same records."""
    query = {name.removesuffix("_"): value for name, value in parameters.items()}
    whole = client.get(f"/appointment?{urlencode(query, doseq=True)}").json
    for order in ("appointment_datetime", "-appointment_datetime", "id"):
        address, paged = (
            f"/appointment?{urlencode({**query, 'limit': 1, 'sort': order, 'total': 'true'}, doseq=True)}",
            [],
        )
        while address:
            page = client.get(address)
            assert page.headers["X-Total-Count"] == str(len(whole))
            paged += [one["id"] for one in page.json]
            address = page.headers.get("Link", "").partition(">")[0].removeprefix("<")
        assert sorted(paged) == sorted(one["id"] for one in whole), order
    return [one["id"] for one in whole]


@pytest.fixture
def day(doctor: Client) -> Client:
    """1: 3 March 10:00–10:30. 2: 3 March 23:45–4 March 00:45. 3: 4 March 09:00–17:00, the longest there is."""
    patient = make_patient(doctor)["id"]
    for begins, minutes in (("03-03T10:00", 30), ("03-03T23:45", 60), ("03-04T09:00", 480)):
        make_appointment(doctor, patient, f"2031-{begins}", duration_minutes=minutes)
    return doctor


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        ("2031-03-03", "2031-03-03", [1, 2]),
        ("2031-03-04", "2031-03-04", [2, 3]),  # 2 reaches into the day
        ("2031-03-03T10:15", "2031-03-03T10:20", [1]),  # it is running
        ("2031-03-03T10:30", "2031-03-03T23:45", []),  # 1 ends as it begins, 2 begins as it ends
        ("2031-03-03T10:29", "2031-03-03T23:46", [1, 2]),
        ("2031-03-04T00:45", "2031-03-04T09:00", []),
        ("2031-03-04T00:44:59", "2031-03-04T09:00:01", [2, 3]),
        ("2031-03-04T16:59", "2031-03-04T18:00", [3]),  # begun as long ago as can be
        ("2031-03-04T17:00", "2031-03-05", []),
        ("2031-03-04T08:00", "2031-03-04T09:00", []),
    ],
)
def test_a_span_finds_what_touches_it(day: Client, begin: str, end: str, expected: list[int]) -> None:
    assert ids(day, from_=begin, to=end) == expected


def test_a_bound_alone(day: Client) -> None:
    assert ids(day, from_="2031-03-04T00:00") == [2, 3]
    assert ids(day, to="2031-03-03T23:45") == [1]
    assert ids(day, to="2031-03-03") == [1, 2]
    assert ids(day, from_="2031-03-04", user_id="me", status="scheduled") == [2, 3]


def test_a_day_by_its_date(day: Client) -> None:
    assert ids(day, on="2031-03-03") == [1, 2]
    assert ids(day, on="2031-03-04") == [2, 3]
    assert ids(day, on="2031-03-05") == []
    assert ids(day, on="20310303") == [1, 2]


def test_today_is_the_clinics_day(doctor: Client, at_home: AtHome) -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):  # never on the same day
        there = at_home(doctor, zone)
        here = there.get("/").json
        assert here["timezone"] == zone
        assert here["today"] == here["now"][:10] == str(datetime.now(ZoneInfo(zone)).date())
        noon = f"{here['today']}T12:00"
        booked = make_appointment(there, make_patient(there)["id"], noon)["id"]
        assert booked in ids(there, on="today")
        assert booked in ids(there, on="Today", user_id="me", holding="true")
        assert booked not in ids(there, on=str(datetime.fromisoformat(here["now"]).date() + timedelta(days=1)))
        there.delete(f"/appointment/{booked}")


def test_holding_are_the_first_four_states(admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    states = ["pending", "scheduled", "confirmed", "checked_in", "cancelled"]
    for hour, status in enumerate(states):
        make_appointment(doctor, patient, f"2031-03-03T{10 + hour}:00", status=status)
    over = make_appointment(
        admin, patient, "2031-03-03T10:00", user_id=doctor.user["id"], overbooked=True, reason="urgent"
    )["id"]
    assert ids(doctor, holding="true") == [1, 2, 3, 4, over]
    assert ids(doctor, holding="false") == [5]
    assert ids(doctor, holding="true", status=["cancelled", "pending"]) == [1]
    assert ids(doctor, holding="false", status="pending") == []
    assert ids(doctor, holding="true", on="2031-03-03", user_id="me", limit=500)[:2] in ([1, over], [over, 1])


def test_me_is_the_caller(doctor: Client, other_doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    for number, client in enumerate((doctor, other_doctor)):
        make_appointment(client, patient, f"2031-03-03T1{number}:00")
        make_report(client, patient)
    for client, own in ((doctor, [1]), (other_doctor, [2])):
        assert ids(client, user_id="me") == own
        assert [one["id"] for one in client.get("/reports?user_id=me").json] == own
        assert [one["id"] for one in client.get("/reports?user_id=me&limit=1&total=true").json] == own
    both = [doctor.user["id"], "me"]
    assert ids(other_doctor, user_id=both) == [1, 2]


def test_the_plus_of_an_offset_may_be_sent_as_it_is(day: Client) -> None:
    for begin in ("2031-03-03T13:15:00+03:00", "2031-03-03 13:15+03", "2031-03-03T13:15+0300"):
        assert [one["id"] for one in day.get(f"/appointment?from={begin}&to=2031-03-03T13:20+03:00").json] == [1], begin
    assert day.get("/patients?admitted_from=2026-01-01T00:00+03:00").status_code == 200
    assert day.get("/patients?admitted_from=1920-01-01T00:00:00+02:27:16").status_code == 200
    assert [one["id"] for one in day.get("/appointment?on=2031-03-03T00:00:00+03:00").json] == [1, 2]
    assert day.get("/patients?date_of_birth=1990-05-31T00:00:00+03:00").status_code == 200
    assert_refused(day.get("/appointment?from=2031-03-03+10+11"), 422, "from")
    assert day.get("/reports?from=2026-01-01T00:00+03:00").status_code == 200


def test_a_time_after_a_blank_is_no_offset(day: Client) -> None:
    assert [one["id"] for one in day.get("/appointment?from=2031-03-03+10:15&to=2031-03-03+10:20").json] == [1]
    assert_refused(day.get("/appointment?from=2031-03-03T10:00+10:00:99"), 422, "from")


def test_a_span_that_ends_before_it_begins_is_refused(admin: Client) -> None:
    for address, start, end in (
        ("/appointment", "from", "to"),
        ("/reports", "from", "to"),
        ("/audit", "from", "to"),
        ("/patients", "admitted_from", "admitted_to"),
    ):
        assert_refused(admin.get(f"{address}?{start}=2031-03-04&{end}=2031-03-03"), 422, end)
        assert_refused(admin.get(f"{address}?{end}=2031-03-03T09:59&{start}=2031-03-03T10:00"), 422, end)
        assert admin.get(f"{address}?{start}=2031-03-03T10:00&{end}=2031-03-03T10:00").status_code == 200
        assert admin.get(f"{address}?{start}=2031-03-03&{end}=2031-03-03").status_code == 200


def test_a_day_beside_a_span_is_refused(doctor: Client) -> None:
    for beside in ("from=2031-03-03", "to=2031-03-03", "from=2031-03-03&to=2031-03-04"):
        assert_refused(doctor.get(f"/appointment?on=2031-03-03&{beside}"), 422, "on")
    for wrong in ("yesterday", "2031-02-30", "2031-03-03T10:00", "1"):
        assert_refused(doctor.get(f"/appointment?on={wrong}"), 422, "on")
    assert_refused(doctor.get("/appointment?user_id=0"), 422, "user_id")
    assert_refused(doctor.get("/appointment?patient_id=me"), 422, "patient_id")
    assert_refused(doctor.get("/appointment?holding=perhaps"), 422, "holding")


def test_the_pages_of_today_stay_pages_of_that_day(doctor: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = make_patient(doctor)["id"]
    for hour in ("10:00", "11:00"):
        make_appointment(doctor, patient, f"2031-03-03T{hour}")
    monkeypatch.setattr(times, "today", lambda: date(2031, 3, 3))
    onwards = doctor.get("/appointment?on=today&limit=1").headers["Link"].partition(">")[0].removeprefix("<")
    monkeypatch.setattr(times, "today", lambda: date(2031, 3, 4))
    assert [one["id"] for one in doctor.get(onwards).json] == [2]


def test_a_page_of_me_does_not_lead_into_anothers(app: Flask, doctor: Client, other_doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    for number in range(4):
        make_appointment((doctor, other_doctor)[number % 2], patient, f"2031-03-03T1{number}:00")
    page = doctor.get("/appointment?user_id=me&limit=1")
    onwards = page.headers["Link"].partition(">")[0].removeprefix("<")
    assert [one["id"] for one in doctor.get(onwards).json] == [3]
    assert [one["id"] for one in other_doctor.get(onwards).json] == [2]
