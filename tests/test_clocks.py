"""A time stays the time that was meant: through forms, on days around a change of the clocks, in every zone."""

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from client import Client, assert_refused
from factories import make_appointment, make_patient
from flask import Flask
from sql import as_stored, sql

AtHome = Callable[[Client, str], Client]


def patched(client: Client, address: str, **changes: object) -> dict[str, object]:
    response = client.patch(address, changes)
    assert response.status_code == 200, response.json
    return dict(response.json)


# --- Where the clocks are put back ---


@pytest.mark.parametrize("offset", ["-04:00", "-05:00"])
def test_a_wall_clock_that_comes_twice_is_sent_back_untouched(doctor: Client, at_home: AtHome, offset: str) -> None:
    there = at_home(doctor, "America/New_York")
    booked = make_appointment(there, make_patient(there)["id"], f"2031-11-02T01:30:00{offset}")
    sent = {**booked, "appointment_datetime": booked["appointment_datetime"][:16], "reason": "Check-up"}
    kept = patched(there, f"/appointment/{booked['id']}", **sent)
    assert kept["appointment_datetime"] == booked["appointment_datetime"]
    assert "appointment_datetime" not in there.get(f"/appointment/{booked['id']}/history").json[-1]["changes"]


def test_with_an_offset_the_other_of_the_two_is_meant(doctor: Client, at_home: AtHome) -> None:
    there = at_home(doctor, "America/New_York")
    booked = make_appointment(there, make_patient(there)["id"], "2031-11-02T01:30:00-05:00")
    moved = patched(there, f"/appointment/{booked['id']}", appointment_datetime="2031-11-02T01:30:00-04:00")
    assert moved["appointment_datetime"] == "2031-11-02T01:30:00-04:00"


def test_a_naive_end_is_the_last_such_instant(doctor: Client, at_home: AtHome) -> None:
    there = at_home(doctor, "America/New_York")
    first, second = (
        make_patient(there, admitted_at=f"2026-11-01T01:30:00{offset}", status="healed")["id"]
        for offset in ("-04:00", "-05:00")
    )
    for asked, expected in (
        ("admitted_from=2026-11-01T01:30", [first, second]),
        ("admitted_to=2026-11-01T01:30", [first, second]),
        ("admitted_to=2026-11-01T01:30:00-04:00", [first]),
        ("admitted_from=2026-11-01T01:30:00-05:00", [second]),
        ("admitted_from=2026-11-01T01:30&admitted_to=2026-11-01T01:30", [first, second]),
    ):
        assert [one["id"] for one in there.get(f"/patients?{asked}").json] == expected, asked


def test_a_discharge_by_a_clock_that_comes_twice_is_after_the_admission(doctor: Client, at_home: AtHome) -> None:
    there = at_home(doctor, "America/New_York")
    stay = {"admitted_at": "2025-11-02T01:30:00-05:00", "discharged_at": "2025-11-02T01:45"}
    assert make_patient(there, status="healed", **stay)["discharged_at"] == "2025-11-02T01:45:00-05:00"


def test_a_sentence_tells_the_offsets_where_the_clocks_are_put_back(doctor: Client, at_home: AtHome) -> None:
    there = at_home(doctor, "America/New_York")
    make_appointment(there, make_patient(there)["id"], "2031-11-02T01:30:00-04:00")
    body = {"patient_id": make_patient(there)["id"], "appointment_datetime": "2031-11-02T01:40"}
    refused = there.post("/appointment", body)
    assert "on 2 November 2031, from 01:30 (-04:00) to 01:00 (-05:00)." in refused.json["msg"]


# --- What forms send back ---


def test_a_stay_that_a_form_sends_back_keeps_its_seconds(doctor: Client) -> None:
    patient = make_patient(doctor)  # admitted now, with microseconds
    address, shown = f"/patient/{patient['id']}", patient["admitted_at"]
    forms = [shown, shown[:16], shown[:19], shown[:10], shown[:16].replace("T", " "), shown[:23] + "Z"]
    for sent in forms:
        assert patched(doctor, address, admitted_at=sent) == patient, sent
    assert patched(doctor, address, admitted_at=shown[:10] + "T00:01")["version"] == 2


def test_a_stay_that_is_changed_to_the_full_minute_is_changed(doctor: Client) -> None:
    patient = make_patient(doctor, status="healed", admitted_at="2026-03-01T08:30:12")
    moved = patched(doctor, f"/patient/{patient['id']}", admitted_at="2026-03-01T08:30:00")
    assert moved["admitted_at"] == "2026-03-01T08:30:00+00:00"


# --- Whole minutes ---


def test_the_seconds_of_an_appointment_are_cut_off(doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    booked = make_appointment(doctor, patient, "2031-03-03T14:07:33", duration_minutes=30)
    assert booked["appointment_datetime"] == "2031-03-03T14:07:00+00:00"
    assert make_appointment(doctor, patient, "2031-03-03T14:37:59.999Z")["id"] == 2
    odd = make_appointment(doctor, patient, "2031-03-03T10:00:30+02:27:16")
    assert odd["appointment_datetime"] == "2031-03-03T07:32:00+00:00"


def test_a_landed_appointment_with_seconds_is_sent_back_whole(app: Flask, doctor: Client) -> None:
    booked = make_appointment(doctor, make_patient(doctor)["id"], "2031-03-03T14:07")
    landed = as_stored(app, datetime(2031, 3, 3, 14, 7, 33, tzinfo=UTC))
    landed = f"{landed}.000000" if isinstance(landed, str) else landed
    sql(app, "UPDATE appointments SET appointment_datetime = :at", at=landed)
    address = f"/appointment/{booked['id']}"
    shown = doctor.get(address).json
    assert shown["appointment_datetime"] == "2031-03-03T14:07:33+00:00"
    for sent in (shown["appointment_datetime"], "2031-03-03T14:07", "2031-03-03T14:07:33.000Z"):
        assert patched(doctor, address, appointment_datetime=sent)["version"] == shown["version"], sent
    kept = patched(doctor, address, **{**shown, "reason": "Check-up"})
    assert kept["appointment_datetime"] == shown["appointment_datetime"]
    assert patched(doctor, address, appointment_datetime="2031-03-03T14:08")["appointment_datetime"][:19].endswith(
        ":08:00"
    )


# --- Days without a midnight ---


@pytest.mark.parametrize(
    ("zone", "sent", "day"),
    [
        ("Africa/Nairobi", "1936-12-31T21:30:00.000Z", "1937-01-01"),
        ("Asia/Kathmandu", "1985-12-31T18:30:00.000Z", "1986-01-01"),
        ("Africa/Cairo", "2023-04-27T22:00:00.000Z", "2023-04-28"),
        ("America/Sao_Paulo", "1990-10-21T03:00:00.000Z", "1990-10-21"),
        (
            "America/Toronto",
            "1919-03-31T05:00:00.000Z",
            "1919-03-31",
        ),  # its midnight, had the clocks not been put forward
        ("America/Toronto", "1919-03-31T04:30:00.000Z", "1919-03-31"),  # its first instant
    ],
)
def test_the_first_instant_of_a_day_without_a_midnight_is_a_birth_date(
    doctor: Client, at_home: AtHome, zone: str, sent: str, day: str
) -> None:
    there = at_home(doctor, zone)
    assert make_patient(there, date_of_birth=sent)["date_of_birth"] == day
    assert [one["date_of_birth"] for one in there.get(f"/patients?date_of_birth={sent}").json] == [day]


def test_a_time_within_a_day_is_no_birth_date(doctor: Client, at_home: AtHome) -> None:
    there = at_home(doctor, "Africa/Cairo")
    for sent in ("2023-04-27T22:30:00.000Z", "2023-04-27T23:00:00.000Z", "1990-05-31T10:00"):
        body = {"first_name": "A", "last_name": "B", "phone_number": "0712 345 678", "date_of_birth": sent}
        assert_refused(there.post("/patients", body), 422, "date_of_birth")


def test_a_bound_that_the_clocks_jump_over_is_the_end_of_the_gap(doctor: Client, at_home: AtHome) -> None:
    there = at_home(doctor, "Europe/Berlin")  # on 29 March 2026 two o'clock is three o'clock
    before, after = (
        make_patient(there, admitted_at=f"2026-03-29T{clock}", status="healed")["id"] for clock in ("01:59", "03:00")
    )
    assert [one["id"] for one in there.get("/patients?admitted_from=2026-03-29T02:30").json] == [after]
    assert [one["id"] for one in there.get("/patients?admitted_to=2026-03-29T02:30").json] == [before, after]
    assert [one["id"] for one in there.get("/patients?admitted_to=2026-03-29T02:30&admitted_from=2026-03-29").json] == [
        before,
        after,
    ]


# --- Any zone, any day, any clock ---

AROUND = {
    "America/New_York": (date(2026, 3, 8), date(2026, 11, 1)),
    "Australia/Lord_Howe": (date(2026, 4, 5), date(2026, 10, 4)),  # half an hour
    "Africa/Cairo": (date(2026, 4, 24), date(2026, 10, 29)),  # no midnight
    "Africa/Casablanca": (date(2026, 2, 15), date(2026, 3, 22)),
    "America/Havana": (date(2026, 3, 8), date(2026, 11, 1)),
    "America/St_Johns": (date(2026, 3, 8), date(2026, 11, 1)),
    "Asia/Kathmandu": (date(2026, 5, 1),),
    "Europe/Dublin": (date(2026, 3, 29), date(2026, 10, 25)),
    "Pacific/Chatham": (date(2026, 4, 5), date(2026, 9, 27)),
}


def sent_by_browsers(shown: str) -> list[str]:
    """What a form or script makes of a time that it was shown."""
    as_utc = datetime.fromisoformat(shown).astimezone(UTC)
    return [
        shown,
        shown[:16],  # <input type="datetime-local">
        shown[:19],
        f"{as_utc:%Y-%m-%dT%H:%M:%S}.{as_utc.microsecond // 1000:03}Z",  # toISOString()
        shown[:16].replace("T", " "),
        shown[:10],  # <input type="date">
    ]


@pytest.mark.parametrize("zone", sorted(AROUND))
def test_what_is_shown_may_be_sent_back_in_any_form(doctor: Client, at_home: AtHome, zone: str) -> None:
    there, random_, clinic = at_home(doctor, zone), random.Random(zone), ZoneInfo(zone)
    patient = make_patient(there, status="healed", date_of_birth="1990-05-31")
    address, kept = f"/patient/{patient['id']}", 0
    for day in AROUND[zone]:
        for _ in range(6):
            midnight = datetime.combine(day, time(), clinic).astimezone(UTC)
            instant = midnight + timedelta(microseconds=random_.randrange(-4 * 3600 * 10**6, 28 * 3600 * 10**6))
            stored = patched(there, address, admitted_at=instant.isoformat())
            assert datetime.fromisoformat(str(stored["admitted_at"])) == instant
            for sent in sent_by_browsers(str(stored["admitted_at"])):
                assert patched(there, address, admitted_at=sent) == stored, sent
                kept += 1
        first = there.get(f"/patients?admitted_from={day}&admitted_to={day}").json
        assert [one["id"] for one in first] == ([1] if str(stored["admitted_at"])[:10] == str(day) else [])
    assert kept == 36 * len(AROUND[zone])


@pytest.mark.parametrize("zone", sorted(AROUND))
def test_a_birth_date_is_kept_as_browsers_send_it(doctor: Client, at_home: AtHome, zone: str) -> None:
    """They send the instant of its midnight, `new Date(1990, 4, 31).toISOString()` say."""
    there, clinic, random_ = at_home(doctor, zone), ZoneInfo(zone), random.Random(zone)
    address = f"/patient/{make_patient(there)['id']}"
    days = [
        *(day for day in AROUND[zone] if day < date(2026, 11, 20)),
        *(date(1930, 1, 1) + timedelta(days=random_.randrange(34_000)) for _ in range(20)),
    ]
    for day in days:
        sent = datetime.combine(day, time(), clinic).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        assert patched(there, address, date_of_birth=sent)["date_of_birth"] == str(day), sent


@pytest.mark.parametrize("zone", sorted(AROUND))
def test_every_minute_of_a_day_is_in_its_day_alone(doctor: Client, at_home: AtHome, zone: str) -> None:
    there, clinic, random_ = at_home(doctor, zone), ZoneInfo(zone), random.Random(zone)
    patient = make_patient(there)["id"]
    day = AROUND[zone][-1] + timedelta(days=365 * 4)
    start, kept = datetime.combine(day, time(), clinic).astimezone(UTC), 0
    for _ in range(8):
        instant = start + timedelta(minutes=random_.randrange(-60, 25 * 60))
        booked = there.post(
            "/appointment",
            {"patient_id": patient, "appointment_datetime": instant.isoformat(), "duration_minutes": 5},
        )
        kept += booked.status_code == 201
        if booked.status_code == 201:
            shown = booked.json["appointment_datetime"][:10]
            last = (
                datetime.fromisoformat(booked.json["appointment_datetime"]) + timedelta(minutes=4, seconds=59)
            ).date()
            for asked in (str(day), shown, str(last)):
                listed = [one["id"] for one in there.get(f"/appointment?on={asked}").json]
                assert (booked.json["id"] in listed) == (asked in (shown, str(last))), (asked, instant)
    assert kept > 3
