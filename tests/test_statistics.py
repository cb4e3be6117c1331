"""Statistics: counts of the clinic's days, weeks and months."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from random import Random
from typing import Any

import pytest
from client import Client, assert_refused
from factories import hours_ago, make_appointment, make_patient, make_report, sign_up
from flask import Flask
from sql import sql
from sqlalchemy import insert

from models import Appointment
from testing.statements import counted_statements

AtHome = Callable[[Client, str], Client]


def statistics(client: Client, **asked: Any) -> dict[str, Any]:
    response = client.get("/statistics", query_string=asked)
    assert response.status_code == 200, response.json
    return dict(response.json)


def nonzero(count: dict[str, Any]) -> dict[str, int]:
    return {status: number for status, number in count["by_status"].items() if number}


def test_the_usual_span_is_the_last_thirty_days_by_day(doctor: Client) -> None:
    told = statistics(doctor)
    today = date.fromisoformat(told["to"])
    assert (told["from"], told["by"]) == (str(today - timedelta(days=29)), "day")
    assert [period["start"] for period in told["periods"]] == [
        str(today - timedelta(days=n)) for n in range(29, -1, -1)
    ]
    assert told == statistics(doctor, to="today") == statistics(doctor, **{"from": told["from"]})


def test_a_clinic_without_records_has_nothing_to_count(doctor: Client) -> None:
    told = statistics(doctor)
    assert told["doctors"] == []
    assert told["patients"]["total"] == told["appointments"]["total"] == 0
    assert set(told["patients"]["by_status"]) >= {"admitted", "outpatient", "deceased"}
    assert set(told["appointments"]["by_status"]) >= {"scheduled", "no_show", "cancelled"}


def test_a_day_counts_what_happened_on_it(doctor: Client) -> None:
    patient = make_patient(doctor, admitted_at="2026-03-01T08:00", discharged_at="2026-03-03T12:00")["id"]
    make_patient(doctor, status="outpatient")
    make_appointment(doctor, patient, "2030-03-01T10:00")
    cancelled = make_appointment(doctor, patient, "2030-03-01T11:00")["id"]
    doctor.patch(f"/appointment/{cancelled}", {"status": "cancelled"})
    make_appointment(doctor, patient, "2030-03-02T23:55")  # ends on the next day
    told = statistics(doctor, **{"from": "2030-03-01", "to": "2030-03-03"})
    assert [nonzero(period["appointments"]) for period in told["periods"]] == [
        {"scheduled": 1, "cancelled": 1},
        {"scheduled": 1},
        {},
    ]
    assert (told["appointments"]["total"], nonzero(told["appointments"])) == (3, {"scheduled": 2, "cancelled": 1})
    assert (told["patients"]["total"], nonzero(told["patients"])) == (2, {"admitted": 1, "outpatient": 1})
    stay = statistics(doctor, **{"from": "2026-03-01", "to": "2026-03-03"})["periods"]
    assert [(day["admissions"], day["discharges"]) for day in stay] == [(1, 0), (0, 0), (0, 1)]


def test_reports_count_on_the_day_they_were_filed_and_archived_records_nowhere(admin: Client) -> None:
    patient = make_patient(admin)["id"]
    make_report(admin, patient)
    gone = make_patient(admin)["id"]
    make_report(admin, gone)
    make_appointment(admin, gone, hours_ago(0))
    assert admin.delete(f"/patient/{gone}").status_code == 200
    told = statistics(admin)
    assert sum(period["reports"] for period in told["periods"]) == 1
    assert told["patients"]["total"] == sum(period["admissions"] for period in told["periods"]) == 1
    assert told["appointments"]["total"] == 0
    assert told["doctors"] == []


def test_a_doctor_has_minutes_and_the_share_of_those_who_did_not_come(
    app: Flask, doctor: Client, other_doctor: Client
) -> None:
    patient = make_patient(doctor)["id"]
    for hour, status in enumerate(("completed", "completed", "no_show", "cancelled", "scheduled")):
        make_appointment(doctor, patient, f"2030-03-01T1{hour}:00", duration_minutes=20)
        sql(app, f"UPDATE appointments SET status = '{status}' WHERE id = {hour + 1}")  # the day is still to come
    make_appointment(other_doctor, patient, "2030-03-01T16:00")
    dora, otto = statistics(doctor, **{"from": "2030-03-01", "to": "2030-03-01"})["doctors"]
    assert dora["user_id"] == doctor.user["id"]
    assert (dora["doctor_name"], dora["total"], dora["booked_minutes"]) == ("Dora Otieno", 5, 80)
    assert nonzero(dora) == {"completed": 2, "no_show": 1, "cancelled": 1, "scheduled": 1}
    assert dora["no_show_rate"] == 0.3333
    assert (otto["doctor_name"], otto["no_show_rate"]) == ("Otto Otieno", None)


def test_weeks_begin_on_mondays_and_months_on_their_first(doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    for day in ("2030-03-03", "2030-03-04", "2030-03-31", "2030-04-01"):  # a Sunday, a Monday, a Sunday, a Monday
        make_appointment(doctor, patient, f"{day}T10:00")
    asked = {"from": "2030-03-02", "to": "2030-04-03"}
    weeks, months = (statistics(doctor, **asked, by=by)["periods"] for by in ("week", "month"))
    assert [(week["start"], week["appointments"]["total"]) for week in weeks] == [
        ("2030-03-02", 1),
        ("2030-03-04", 1),
        ("2030-03-11", 0),
        ("2030-03-18", 0),
        ("2030-03-25", 1),
        ("2030-04-01", 1),
    ]
    assert [(month["start"], month["appointments"]["total"]) for month in months] == [
        ("2030-03-02", 3),
        ("2030-04-01", 1),
    ]


@pytest.mark.parametrize(
    ("zone", "days"),
    [
        ("Africa/Nairobi", ["2030-03-01", "2030-03-02"]),
        ("Europe/Berlin", ["2030-03-30", "2030-03-31", "2030-04-01"]),  # 31 March has 23 hours
        ("America/New_York", ["2030-11-02", "2030-11-03", "2030-11-04"]),  # 3 November has 25 hours
        ("America/St_Johns", ["1996-10-26", "1996-10-27", "1996-10-28"]),  # put back at 0:01, to the day before
        ("America/Sao_Paulo", ["2018-11-03", "2018-11-04", "2018-11-05"]),  # 4 November begins at 1:00
        ("Pacific/Apia", ["2011-12-29", "2011-12-30", "2011-12-31"]),  # there was no 30 December
    ],
)
def test_a_day_of_the_statistics_has_what_begins_on_that_day(
    app: Flask, doctor: Client, at_home: AtHome, zone: str, days: list[str]
) -> None:
    """Of all quarters of an hour, a third has an appointment, so that no two spans have as many by chance."""
    patient = make_patient(doctor)["id"]
    first = datetime.fromisoformat(f"{days[0]}T00:00Z") - timedelta(days=1)
    kept = {"patient_id": patient, "user_id": doctor.user["id"], "version": 1, "duration_minutes": 15}
    quarters = [first + timedelta(minutes=15 * n) for n in range(96 * (len(days) + 2))]
    some = Random(1).sample(quarters, len(quarters) // 3)
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        connection.execute(insert(Appointment), [{**kept, "appointment_datetime": time} for time in some])
    here = at_home(doctor, zone)
    told = statistics(here, **{"from": days[0], "to": days[-1]})
    listed = [len(here.get(f"/appointment?on={day}").json) for day in days]
    assert [period["start"] for period in told["periods"]] == days
    assert [period["appointments"]["total"] for period in told["periods"]] == listed
    assert told["appointments"]["total"] == sum(listed) == told["doctors"][0]["total"]
    if zone == "Pacific/Apia":
        assert told["periods"][1]["appointments"]["total"] == 0


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ("from=2030-03-02&to=2030-03-01", "to"),  # no days
        ("from=1900-01-01&to=2099-12-31", "by"),
        ("from=1900-01-01&to=2099-12-31&by=month", "by"),
        ("from=2030-01-01&to=2032-09-27", "by"),
        ("from=2030-02-30", "from"),
        ("from=2030-03-01T10:00", "from"),
        ("to=0001-01-01", "to"),
        ("by=year", "by"),
        ("user_id=1", "user_id"),
    ],
)
def test_a_span_without_days_or_with_too_many_is_refused(doctor: Client, asked: str, field: str) -> None:
    assert_refused(doctor.get(f"/statistics?{asked}"), 422, field)


def test_a_thousand_periods_are_counted(doctor: Client) -> None:
    assert len(statistics(doctor, **{"from": "2030-01-01", "to": "2032-09-26"})["periods"]) == 1_000
    assert len(statistics(doctor, **{"from": "1900-01-01", "to": "1983-04-30", "by": "month"})["periods"]) == 1_000


def test_a_span_that_begins_later_than_today_has_thirty_days_too(doctor: Client) -> None:
    told = statistics(doctor, **{"from": "2099-01-01"})
    assert (told["to"], len(told["periods"])) == ("2099-01-30", 30)


def test_the_statements_are_as_many_for_a_day_as_for_years(app: Flask, doctor: Client) -> None:
    for name in ("Ines", "Omar"):
        sign_up(app, name)
    numbers = []
    for first in ("2030-03-01", "2028-03-01"):
        with counted_statements(app) as statements:
            statistics(doctor, **{"from": first, "to": "2030-03-01"})
        numbers.append(len(statements))
    assert numbers == [4, 4]  # the guard, the periods, the patients, the doctors
