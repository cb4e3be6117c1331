"""The desk: working hours, absences and their repair, and what may be booked."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from client import Client, assert_refused, at_once, ids, verify
from factories import make_appointment, make_patient, sign_up
from flask import Flask
from remembered import signed_in
from sql import count, snapshot, sql
from werkzeug.test import TestResponse

MONDAY, TUESDAY = "2030-03-04", "2030-03-05"
MORNING = {"weekday": "mon", "from": "08:00", "to": "12:00"}


def put_hours(client: Client, user: int, *hours: dict[str, str], **kwargs: Any) -> TestResponse:
    return client.send("PUT", f"/user/{user}/hours", list(hours), **kwargs)


def call_in(client: Client, user: int, start: str = MONDAY, end: str = "", **fields: Any) -> TestResponse:
    """Enters an absence: of a day, unless said."""
    query, headers = fields.pop("query", ""), fields.pop("headers", {})
    body = {"starts_at": start, "ends_at": end or start, **fields}
    return client.post(f"/user/{user}/absences{query}", body, headers=headers)


def book(client: Client, patient: int, at: str, **fields: Any) -> TestResponse:
    return client.post("/appointment", {"patient_id": patient, "appointment_datetime": at, **fields})


@pytest.fixture
def patient(doctor: Client) -> int:
    return int(make_patient(doctor)["id"])


@pytest.fixture
def me(doctor: Client) -> int:
    return int(doctor.user["id"])


@pytest.fixture
def colleague(other_doctor: Client) -> int:
    return int(other_doctor.user["id"])


# --- Hours ---


def test_a_week_is_set_read_and_sent_back(doctor: Client, me: int) -> None:
    empty = doctor.get(f"/user/{me}/hours")
    assert (empty.json, empty.headers["ETag"]) == ([], '"0"')
    evening = {"weekday": "Friday", "from": "20:00", "to": "24:00"}
    made = put_hours(doctor, me, evening, MORNING)
    assert (made.json, made.headers["ETag"]) == ([MORNING, {**evening, "weekday": "fri"}], '"1"')
    again = put_hours(doctor, me, *made.json)
    assert (again.json, again.headers["ETag"]) == (made.json, '"1"')  # nothing has changed
    assert put_hours(doctor, me).headers["ETag"] == '"2"'
    assert doctor.get(f"/user/{me}/hours").json == []


def test_of_two_who_change_a_week_the_second_is_told(doctor: Client, receptionist: Client, me: int) -> None:
    assert put_hours(doctor, me, MORNING, headers={"If-Match": '"0"'}).status_code == 200
    assert_refused(put_hours(receptionist, me, headers={"If-Match": '"0"'}), 412)
    assert doctor.get(f"/user/{me}/hours").json == [MORNING]
    assert put_hours(receptionist, me, headers={"If-Match": '"1"'}).headers["ETag"] == '"2"'


def test_the_history_of_a_doctor_tells_their_hours_and_absences(app: Flask, doctor: Client, me: int) -> None:
    put_hours(doctor, me, MORNING)
    put_hours(doctor, me, {**MORNING, "to": "11:30"})
    absence = call_in(doctor, me, reason="flu").json["absence"]["id"]
    doctor.delete(f"/user/{me}/absences/{absence}")
    told = [(entry["kind"], entry["action"]) for entry in doctor.get(f"/user/{me}/history").json[-4:]]
    assert told == [("hours", "create"), ("hours", "change"), ("absence", "create"), ("absence", "archive")]
    [*_, change, made, _] = doctor.get(f"/user/{me}/history").json
    assert change["changes"] == {"hours": {"from": ["mon 08:00-12:00"], "to": ["mon 08:00-11:30"]}}
    assert made["changes"]["starts_at"]["to"] == f"{MONDAY}T00:00:00+00:00"
    assert "whole" in verify(app)


@pytest.mark.parametrize(
    ("hours", "field"),
    [
        ([{**MORNING, "from": "12:00"}], "to"),
        ([{**MORNING, "from": "13:00"}], "to"),
        ([{**MORNING, "to": "25:00"}], "to"),
        ([{**MORNING, "from": "24:00", "to": "24:00"}], "to"),
        ([{**MORNING, "from": "8:00"}], "from"),
        ([{**MORNING, "from": 800}], "from"),
        ([{**MORNING, "weekday": "noday"}], "weekday"),
        ([{**MORNING, "weekday": 9}], "weekday"),
        ([{"weekday": "mon", "from": "08:00"}], "to"),
        ([{**MORNING, "room": 1}], "room"),
        ([MORNING, {**MORNING, "from": "11:59", "to": "13:00"}], "body"),
        ([MORNING, MORNING], "body"),
        ([MORNING] * 200, "body"),
        ({"hours": []}, "body"),
        (None, "body"),
    ],
)
def test_bad_hours_are_refused(app: Flask, doctor: Client, me: int, hours: Any, field: str) -> None:
    put_hours(doctor, me, MORNING)
    before = snapshot(app)
    content = {"data": json.dumps(hours), "content_type": "application/json"}
    assert_refused(doctor.send("PUT", f"/user/{me}/hours", **content), 422, field)
    assert snapshot(app) == before


def test_hours_of_one_day_may_touch(doctor: Client, me: int, patient: int) -> None:
    put_hours(doctor, me, MORNING, {**MORNING, "from": "12:00", "to": "13:00"})
    assert book(doctor, patient, f"{MONDAY}T11:45").status_code == 201


def test_nobody_has_the_hours_of_an_archived_user(admin: Client, me: int) -> None:
    admin.delete(f"/user/{me}")
    assert_refused(admin.get(f"/user/{me}/hours"), 404)
    assert_refused(put_hours(admin, me, MORNING), 404)
    assert_refused(admin.get("/user/999/hours"), 404)


# --- Booking by the hours ---


def test_a_doctor_without_hours_is_booked_at_any_time(doctor: Client, me: int, patient: int) -> None:
    assert book(doctor, patient, f"{MONDAY}T03:00").json["off_hours"] is False
    put_hours(doctor, me, MORNING)
    put_hours(doctor, me)
    assert book(doctor, patient, f"{MONDAY}T04:00").status_code == 201


@pytest.mark.parametrize("at", ["07:59", "11:31", "12:00", "03:00"])
def test_outside_of_the_hours_nothing_is_booked_but_on_purpose(doctor: Client, me: int, patient: int, at: str) -> None:
    put_hours(doctor, me, MORNING)
    refused = book(doctor, patient, f"{MONDAY}T{at}")
    assert_refused(refused, 409, "appointment_datetime")
    assert refused.json["code"] == "off_hours"
    assert book(doctor, patient, f"{MONDAY}T{at}", off_hours=True).json["off_hours"] is True
    assert_refused(book(doctor, patient, f"{TUESDAY}T10:00"), 409, "appointment_datetime")
    inside = book(doctor, patient, f"{MONDAY}T10:00", off_hours=True, overbooked=False).json
    assert inside["off_hours"] is False


def test_hours_that_touch_at_midnight_are_one(doctor: Client, me: int, patient: int) -> None:
    night = {"weekday": "mon", "from": "22:00", "to": "24:00"}
    put_hours(doctor, me, night, {"weekday": "tue", "from": "00:00", "to": "06:00"})
    assert book(doctor, patient, f"{MONDAY}T23:45").json["off_hours"] is False
    assert_refused(book(doctor, patient, f"{TUESDAY}T05:45"), 409, "appointment_datetime")


def test_a_check_in_does_not_fail_because_the_hours_have_changed(doctor: Client, me: int, patient: int) -> None:
    booked = make_appointment(doctor, patient, f"{MONDAY}T15:00")
    put_hours(doctor, me, MORNING)
    address = f"/appointment/{booked['id']}"
    for change in ({"status": "checked_in"}, {"note": "waits"}, {**booked, "status": "confirmed"}):
        assert doctor.patch(address, change).status_code == 200
    assert doctor.patch(address, {"duration_minutes": 45}).json["code"] == "off_hours"
    assert doctor.patch(address, {"appointment_datetime": f"{MONDAY}T15:10"}).json["code"] == "off_hours"
    moved = doctor.patch(address, {"appointment_datetime": f"{MONDAY}T15:10", "off_hours": True})
    assert moved.json["off_hours"] is True
    assert doctor.patch(address, {"appointment_datetime": f"{MONDAY}T15:20"}).json["code"] == "off_hours"
    assert doctor.patch(address, {"appointment_datetime": f"{MONDAY}T09:00"}).json["off_hours"] is False


def test_a_slot_that_is_taken_up_again_is_looked_at(doctor: Client, admin: Client, me: int, patient: int) -> None:
    booked = make_appointment(doctor, patient, f"{MONDAY}T15:00")
    address = f"/appointment/{booked['id']}"
    doctor.patch(address, {"status": "cancelled"})
    put_hours(doctor, me, MORNING)
    assert doctor.patch(address, {"status": "scheduled"}).json["code"] == "off_hours"
    assert doctor.patch(address, {"status": "scheduled", "off_hours": True}).json["off_hours"] is True
    doctor.delete(address)
    assert admin.post(f"{address}/restore").json["off_hours"] is True  # it was meant
    sql(doctor.app, "UPDATE appointments SET off_hours = (1 = 0)")
    doctor.delete(address)
    assert admin.post(f"{address}/restore").json["code"] == "off_hours"


def test_a_swap_and_a_change_of_doctor_are_looked_at(
    doctor: Client, admin: Client, me: int, colleague: int, patient: int
) -> None:
    other = make_patient(doctor)["id"]
    first = make_appointment(doctor, patient, f"{MONDAY}T09:00")["id"]
    second = make_appointment(admin, other, f"{MONDAY}T15:00", user_id=colleague)["id"]
    put_hours(doctor, me, MORNING)
    assert admin.post("/appointment/swap", {"first": first, "second": second}).json["code"] == "off_hours"
    assert admin.patch(f"/appointment/{second}", {"user_id": me}).json["code"] == "off_hours"
    assert admin.patch(f"/appointment/{second}", {"user_id": me, "off_hours": True}).json["off_hours"] is True


def test_off_hours_is_told_of_the_slot_and_no_claim(doctor: Client, me: int, patient: int) -> None:
    put_hours(doctor, me, MORNING)
    inside = make_appointment(doctor, patient, f"{MONDAY}T09:00")["id"]
    outside = make_appointment(doctor, patient, f"{MONDAY}T15:00", off_hours=True)["id"]
    assert doctor.patch(f"/appointment/{inside}", {"off_hours": True}).json["off_hours"] is False
    assert doctor.patch(f"/appointment/{outside}", {"off_hours": False, "note": "x"}).json["off_hours"] is True
    doctor.patch(f"/appointment/{outside}", {"status": "cancelled"})
    assert doctor.patch(f"/appointment/{outside}", {"status": "scheduled"}).json["off_hours"] is True


def test_what_was_allowed_outside_of_the_hours_is_swapped_within_the_doctors_diary(
    doctor: Client, me: int, patient: int
) -> None:
    other = make_patient(doctor)["id"]
    put_hours(doctor, me, MORNING)
    inside = make_appointment(doctor, patient, f"{MONDAY}T09:00")["id"]
    outside = make_appointment(doctor, other, f"{MONDAY}T15:00", off_hours=True)["id"]
    swapped = doctor.post("/appointment/swap", {"first": inside, "second": outside}).json
    assert [swapped[place]["off_hours"] for place in ("first", "second")] == [True, False]


# --- Absences ---


def test_an_absence_is_entered_listed_read_and_taken_back(
    doctor: Client, receptionist: Client, me: int, patient: int
) -> None:
    made = call_in(receptionist, me, f"{MONDAY}T10:00", f"{MONDAY}T12:00", reason="dentist")
    assert made.status_code == 201
    assert {**made.json["absence"], "reason": ""} | {"reason": "dentist"} == made.json["absence"]
    assert (made.json["handed_over"], made.json["cancelled"]) == ([], [])
    address = f"/user/{me}/absences/{made.json['absence']['id']}"
    assert made.headers["Location"] == address
    assert doctor.get(address).json == made.json["absence"] == doctor.get(f"/user/{me}/absences").json[0]
    refused = book(doctor, patient, f"{MONDAY}T11:45")
    assert_refused(refused, 409, "appointment_datetime")
    assert refused.json["code"] == "absent"
    assert "dentist" not in refused.text
    assert book(doctor, patient, f"{MONDAY}T12:00").status_code == 201
    assert_refused(doctor.delete(address, headers={"If-Match": '"7"'}), 412)
    assert doctor.delete(address, headers={"If-Match": '"1"'}).status_code == 200
    assert doctor.get(f"/user/{me}/absences").json == []
    assert_refused(doctor.get(address), 404)
    assert book(doctor, patient, f"{MONDAY}T11:00").status_code == 201


def test_a_date_alone_is_the_whole_day(doctor: Client, me: int, at_home: Any) -> None:
    nairobi = at_home(doctor, "Africa/Nairobi")
    made = call_in(nairobi, me, MONDAY, TUESDAY).json["absence"]
    assert (made["starts_at"], made["ends_at"]) == (f"{MONDAY}T00:00:00+03:00", "2030-03-06T00:00:00+03:00")


def test_an_absence_takes_a_year_at_most(doctor: Client, me: int) -> None:
    assert call_in(doctor, me, f"{MONDAY}T13:07", "2031-03-05T13:07").status_code == 201
    assert call_in(doctor, me, "2031-03-05T13:07", "2032-03-05T13:08").status_code == 422


def test_an_absence_that_began_today_is_fine(doctor: Client, me: int) -> None:
    today = doctor.get("/").json["today"]
    assert call_in(doctor, me, today).status_code == 201


def test_why_somebody_is_absent_is_for_themself_and_the_desk(
    doctor: Client, other_doctor: Client, receptionist: Client, admin: Client, me: int
) -> None:
    absence = call_in(doctor, me, reason="surgery").json["absence"]["id"]
    for address in (f"/user/{me}/absences", f"/user/{me}/absences/{absence}"):
        for client in (doctor, receptionist, admin):
            assert "surgery" in client.get(address).text
        hidden = other_doctor.get(address)
        assert "surgery" not in hidden.text
        assert (hidden.json[0] if isinstance(hidden.json, list) else hidden.json)["reason"] is None
    assert "surgery" in admin.get("/audit?kind=absence").text
    assert_refused(other_doctor.get("/audit"), 403)
    assert_refused(other_doctor.get(f"/user/{me}/history"), 403)
    assert "surgery" not in call_in(receptionist, me, reason="x").text


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"end": f"{MONDAY}T00:00", "start": f"{MONDAY}T00:00"}, "ends_at"),
        ({"end": "2030-03-03T10:00"}, "ends_at"),
        ({"end": "2080-03-04"}, "ends_at"),
        ({"end": "2031-03-06"}, "ends_at"),
        ({"start": "2020-03-04", "end": "2020-03-05"}, "ends_at"),
        ({"start": "2026-11-01", "end": "2027-03-05"}, "starts_at"),
        ({"start": "soon", "end": MONDAY}, "starts_at"),
        ({"start": None, "end": MONDAY}, "starts_at"),
        ({"end": "2030-02-30"}, "ends_at"),
        ({"end": "2199-12-31", "start": "2199-12-31"}, "ends_at"),
        ({"reason": None}, "reason"),
        ({"reason": "x" * 2001}, "reason"),
        ({"hand_over_to": 0}, "hand_over_to"),
        ({"cancel_rest": "perhaps"}, "cancel_rest"),
        ({"room": 7}, "room"),
    ],
)
def test_a_bad_absence_is_refused(app: Flask, doctor: Client, me: int, fields: dict[str, Any], field: str) -> None:
    before = snapshot(app)
    assert_refused(call_in(doctor, me, **fields), 422, field)
    assert snapshot(app) == before


def test_absences_may_touch_but_not_overlap(app: Flask, doctor: Client, me: int) -> None:
    call_in(doctor, me, MONDAY, reason="secret")
    before = snapshot(app)
    for start, end in ((MONDAY, MONDAY), ("2030-03-01", "2030-04-01"), (f"{MONDAY}T23:59", TUESDAY)):
        refused = call_in(doctor, me, start, end)
        assert_refused(refused, 409, "starts_at")
        assert (refused.json["code"], "secret" in refused.text) == ("absent", False)
    assert snapshot(app) == before
    assert call_in(doctor, me, TUESDAY).status_code == 201


def test_an_archived_user_has_no_absence_and_an_inactive_one_gets_none(app: Flask, admin: Client, me: int) -> None:
    admin.patch(f"/user/{me}", {"is_active": False})
    refused = call_in(admin, me)
    assert (refused.status_code, refused.json["code"]) == (409, "doctor_inactive")
    admin.delete(f"/user/{me}")
    assert_refused(call_in(admin, me), 404)
    assert_refused(call_in(admin, 999), 404)
    assert count(app, "absences") == 0


def test_an_absence_is_found_at_the_address_of_its_owner_alone(
    doctor: Client, other_doctor: Client, admin: Client, me: int, colleague: int
) -> None:
    absence = call_in(doctor, me).json["absence"]["id"]
    assert_refused(admin.get(f"/user/{colleague}/absences/{absence}"), 404)
    assert_refused(admin.delete(f"/user/{colleague}/absences/{absence}"), 404)
    assert_refused(other_doctor.delete(f"/user/{me}/absences/{absence}"), 403)
    assert_refused(other_doctor.delete(f"/user/{colleague}/absences/{absence}"), 403)
    assert admin.get(f"/user/{me}/absences/{absence}").status_code == 200


def test_nothing_newly_takes_a_slot_of_an_absent_doctor(
    doctor: Client, admin: Client, me: int, colleague: int, patient: int
) -> None:
    cancelled = make_appointment(doctor, patient, f"{MONDAY}T10:00")["id"]
    doctor.patch(f"/appointment/{cancelled}", {"status": "cancelled"})
    gone = make_appointment(doctor, patient, f"{MONDAY}T11:00")["id"]
    doctor.delete(f"/appointment/{gone}")
    mine = make_appointment(doctor, patient, f"{TUESDAY}T10:00")["id"]
    theirs = make_appointment(admin, make_patient(admin)["id"], f"{MONDAY}T10:00", user_id=colleague)["id"]
    call_in(doctor, me)
    for refused in (
        book(doctor, patient, f"{MONDAY}T09:00"),
        book(admin, patient, f"{MONDAY}T09:00", user_id=me, overbooked=True, reason="urgent"),
        doctor.patch(f"/appointment/{mine}", {"appointment_datetime": f"{MONDAY}T23:31"}),
        doctor.patch(f"/appointment/{cancelled}", {"status": "pending"}),
        admin.post(f"/appointment/{gone}/restore"),
        admin.patch(f"/appointment/{theirs}", {"user_id": me}),
        admin.post("/appointment/swap", {"first": mine, "second": theirs}),
    ):
        assert (refused.status_code, refused.json["code"]) == (409, "absent")
    assert book(doctor, patient, f"{MONDAY}T09:00", status="cancelled").status_code == 201


# --- The repair ---


@pytest.fixture
def day(doctor: Client, admin: Client, me: int, colleague: int) -> list[int]:
    """Four appointments of the doctor: at nine, ten, eleven, and overbooked at eleven. At ten the colleague is busy."""
    booked = [
        make_appointment(doctor, make_patient(doctor)["id"], f"{MONDAY}T{hour}:00")["id"] for hour in ("09", "10", "11")
    ]
    extra = {"user_id": me, "overbooked": True, "reason": "urgent"}
    booked.append(make_appointment(admin, make_patient(doctor)["id"], f"{MONDAY}T11:00", **extra)["id"])
    make_appointment(admin, make_patient(doctor)["id"], f"{MONDAY}T10:15", user_id=colleague)
    return booked


def test_an_absence_over_appointments_names_them(app: Flask, doctor: Client, me: int, day: list[int]) -> None:
    before = snapshot(app)
    refused = call_in(doctor, me)
    assert_refused(refused, 409)
    assert refused.json["code"] == "has_appointments"
    assert (refused.json["total"], [one["id"] for one in refused.json["conflicts"]]) == (4, day)
    assert snapshot(app) == before


def test_of_many_appointments_in_the_way_twenty_are_named(doctor: Client, me: int) -> None:
    long = {"reason": "ж" * 1900, "note": "ж" * 1900}
    for number in range(22):
        patient = make_patient(doctor, first_name="ж" * 100, last_name="ж" * 100)["id"]
        make_appointment(doctor, patient, f"{MONDAY}T{8 + number // 6:02}:{number % 6}0", duration_minutes=10, **long)
    refused = call_in(doctor, me)
    assert refused.json["total"] == 22
    assert 10 <= len(refused.json["conflicts"]) <= 20
    assert len(refused.data) <= 16 * 1024


def test_a_colleague_takes_what_they_can_and_the_rest_is_cancelled(
    app: Flask, doctor: Client, other_doctor: Client, me: int, colleague: int, day: list[int]
) -> None:
    nine, ten, eleven, extra = day
    before = snapshot(app)
    refused = call_in(doctor, me, hand_over_to=colleague)
    assert (refused.status_code, refused.json["code"], refused.json["total"]) == (409, "has_appointments", 2)
    assert [one["id"] for one in refused.json["conflicts"]] == [ten, extra]  # a doctor's move ends an overbooking
    assert snapshot(app) == before
    made = call_in(doctor, me, hand_over_to=colleague, cancel_rest=True)
    assert (made.json["handed_over"], made.json["cancelled"]) == ([nine, eleven], [ten, extra])
    assert ids(doctor.get(f"/appointment?user_id={colleague}&holding=true"))[:1] == [nine]
    given = doctor.get(f"/appointment/{nine}").json
    assert (given["user_id"], given["appointment_datetime"][:16], given["version"]) == (colleague, f"{MONDAY}T09:00", 2)
    [_, entry] = other_doctor.get(f"/appointment/{nine}/history").json
    assert entry["changes"] == {"user_id": {"from": me, "to": colleague}}
    assert doctor.get(f"/appointment/{ten}").json["status"] == "cancelled"
    assert "whole" in verify(app)


def test_an_administrator_hands_over_what_is_overbooked_as_it_is(
    admin: Client, me: int, colleague: int, day: list[int]
) -> None:
    made = call_in(admin, me, hand_over_to=colleague, cancel_rest=True).json
    assert (made["handed_over"], made["cancelled"]) == ([day[0], day[2], day[3]], [day[1]])
    assert admin.get(f"/appointment/{day[3]}").json["overbooked"] is True


def test_without_a_colleague_all_are_cancelled(doctor: Client, me: int, day: list[int]) -> None:
    made = call_in(doctor, me, cancel_rest=True)
    assert (made.json["handed_over"], made.json["cancelled"]) == ([], day)


@pytest.mark.parametrize("cancel_rest", [False, True])
@pytest.mark.parametrize("who", ["doctor", "admin", "receptionist"])
def test_a_dry_run_says_what_the_request_then_does(
    app: Flask,
    doctor: Client,
    admin: Client,
    receptionist: Client,
    me: int,
    colleague: int,
    day: list[int],
    who: str,
    cancel_rest: bool,
) -> None:
    client = {"doctor": doctor, "admin": admin, "receptionist": receptionist}[who]
    fields = {"hand_over_to": colleague, "cancel_rest": cancel_rest, "reason": "flu"}
    before = snapshot(app)
    trial = call_in(client, me, query="?dry_run=true", headers={"Idempotency-Key": "again"}, **fields)
    assert trial.status_code == 200
    assert snapshot(app) == before
    real = call_in(client, me, headers={"Idempotency-Key": "again"}, **fields)
    clashing = [clash["appointment"]["id"] for clash in trial.json["clashes"]]
    assert clashing == ([day[1]] if who == "admin" else [day[1], day[3]])
    if cancel_rest:
        assert real.status_code == 201
        assert {name: trial.json[name] for name in ("handed_over", "cancelled")} == {
            name: real.json[name] for name in ("handed_over", "cancelled")
        }
        assert trial.json["absence"].items() <= real.json["absence"].items()
        assert call_in(client, me, headers={"Idempotency-Key": "again"}, **fields).json == real.json
        assert count(app, "absences") == 1
    else:
        assert [one["id"] for one in real.json["conflicts"]] == clashing
        assert snapshot(app) == before


def test_a_dry_run_offers_the_colleagues_next_free_slots(
    doctor: Client, admin: Client, me: int, colleague: int, day: list[int]
) -> None:
    ten = doctor.get(f"/appointment/{day[1]}").json
    make_appointment(admin, ten["patient_id"], f"{MONDAY}T13:00", user_id=admin.user["id"])
    clash = call_in(doctor, me, hand_over_to=colleague, query="?dry_run=true").json["clashes"][0]
    assert clash["appointment"] == ten
    assert clash["conflict"]["user_id"] == colleague
    # from ten on he is busy until 10:45, gets the one of eleven, and at 13:00 the patient is elsewhere
    starts = [slot["start"][11:16] for slot in clash["alternatives"]]
    assert starts == ["11:30", "12:00", "12:30"]
    for slot in clash["alternatives"]:
        moved = admin.patch(f"/appointment/{ten['id']}", {"appointment_datetime": slot["start"], "user_id": colleague})
        assert moved.status_code == 200, moved.json


def test_a_colleague_takes_nothing_while_absent_or_outside_of_their_hours(
    doctor: Client, other_doctor: Client, me: int, colleague: int, day: list[int]
) -> None:
    put_hours(other_doctor, colleague, {"weekday": "mon", "from": "08:00", "to": "11:00"})
    trial = call_in(doctor, me, hand_over_to=colleague, query="?dry_run=true").json
    assert trial["handed_over"] == [day[0]]
    assert [clash["conflict"] is None for clash in trial["clashes"]] == [False, True, True]
    doctor_away = call_in(other_doctor, colleague, f"{MONDAY}T08:00", f"{MONDAY}T10:00", reason="secret")
    assert doctor_away.status_code == 201
    refused = call_in(doctor, me, f"{MONDAY}T09:00", f"{MONDAY}T09:20", hand_over_to=colleague)
    assert (refused.status_code, refused.json["code"], "secret" in refused.text) == (409, "absent", False)
    assert call_in(doctor, me, hand_over_to=colleague, query="?dry_run=true").json["handed_over"] == []


def test_nobody_hands_over_to_who_cannot_be_the_doctor(
    app: Flask, doctor: Client, admin: Client, receptionist: Client, me: int, day: list[int]
) -> None:
    inactive = sign_up(app, "Ines")["id"]
    admin.patch(f"/user/{inactive}", {"is_active": False})
    archived = sign_up(app, "Arno")["id"]
    admin.delete(f"/user/{archived}")
    before = snapshot(app)
    for who in (me, receptionist.user["id"], inactive, archived, 999):
        for query in ("", "?dry_run=true"):
            assert_refused(call_in(doctor, me, hand_over_to=who, cancel_rest=True, query=query), 422, "hand_over_to")
    assert snapshot(app) == before


def test_a_doctor_gives_their_appointments_away_by_this_request_alone(
    doctor: Client, other_doctor: Client, me: int, colleague: int, day: list[int]
) -> None:
    assert_refused(doctor.patch(f"/appointment/{day[0]}", {"user_id": colleague}), 403)
    assert_refused(call_in(other_doctor, me, hand_over_to=colleague, cancel_rest=True), 403)
    assert call_in(doctor, me, hand_over_to=colleague, cancel_rest=True).status_code == 201


def test_lunch_is_blocked(receptionist: Client, me: int, patient: int) -> None:
    assert call_in(receptionist, me, f"{MONDAY}T12:00", f"{MONDAY}T13:00", reason="lunch").status_code == 201
    refused = book(receptionist, patient, f"{MONDAY}T12:30", user_id=me)
    assert (refused.status_code, refused.json["code"]) == (409, "absent")


# --- Races ---


def test_of_an_absence_and_bookings_at_the_same_moment_one_side_wins(
    app: Flask, doctor: Client, me: int, receptionist: Client
) -> None:
    patients = [make_patient(doctor)["id"] for _ in range(8)]
    for number in range(4):
        day = (datetime(2030, 5, 6, tzinfo=UTC) + timedelta(days=number)).date().isoformat()

        def booking(place: int, day: str = day) -> TestResponse:
            return book(Client(app, doctor.token), patients[place], f"{day}T{9 + place:02}:00", user_id=me)

        answers = at_once(
            lambda day=day: call_in(Client(app, receptionist.token), me, day),
            *(lambda place=place, day=day: booking(place, day) for place in range(8)),
        )
        absent, booked = answers[0].status_code == 201, [answer.status_code == 201 for answer in answers[1:]]
        assert {answer.status_code for answer in answers} <= {201, 409}
        assert absent != any(booked)
        assert absent or all(booked)


def test_crosswise_hand_overs_do_not_wait_for_each_other(
    app: Flask, doctor: Client, other_doctor: Client, admin: Client, me: int, colleague: int
) -> None:
    for number in range(4):
        day = f"2030-06-{number + 3:02}"
        mine = make_appointment(doctor, make_patient(doctor)["id"], f"{day}T09:00")["id"]
        theirs = make_appointment(other_doctor, make_patient(doctor)["id"], f"{day}T11:00")["id"]
        answers = at_once(
            lambda day=day: call_in(Client(app, doctor.token), me, day, hand_over_to=colleague),
            lambda day=day: call_in(Client(app, other_doctor.token), colleague, day, hand_over_to=me),
            lambda mine=mine: Client(app, admin.token).patch(f"/appointment/{mine}", {"note": "x"}),
            lambda theirs=theirs: Client(app, admin.token).patch(f"/appointment/{theirs}", {"duration_minutes": 20}),
        )
        assert sorted(answer.status_code for answer in answers[:2]) == [201, 409], [a.json for a in answers]
        assert {answer.status_code for answer in answers[2:]} <= {200, 409}


def test_the_day_of_a_doctor_is_one_request(doctor: Client, me: int) -> None:
    today = doctor.get("/").json["today"]
    patient = make_patient(doctor, date_of_birth="1980-05-31")
    late = make_appointment(doctor, patient["id"], f"{today}T23:00", note="brings the X-ray")
    make_appointment(doctor, patient["id"], f"{today}T22:00", status="cancelled")
    [shown] = doctor.get("/appointment?on=today&user_id=me&holding=true").json
    assert shown == late
    assert shown["patient"]["phone_number"] == patient["phone_number"]


def test_a_purged_user_leaves_no_hours_and_no_absences(app: Flask, admin: Client) -> None:
    spare = signed_in(app, "Spare", "doctor")
    put_hours(spare, spare.user["id"], MORNING)
    call_in(spare, spare.user["id"], reason="secret")
    admin.delete(f"/user/{spare.user['id']}")
    sql(app, "UPDATE users SET deleted_at = created_at WHERE deleted_at IS NOT NULL")
    done = app.test_cli_runner().invoke(args=["purge", "--older-than", "0d"])
    assert done.exit_code == 0, done.output
    assert [count(app, table) for table in ("weeks", "working_hours", "absences")] == [0, 0, 0]
    assert "secret" not in admin.get("/audit").text
    assert "whole" in verify(app)


def test_a_patient_whose_appointment_would_come_back_into_an_absence_stays_archived_and_one_is_told_why(
    app: Flask, doctor: Client, admin: Client, me: int, patient: int
) -> None:
    began = datetime.now(UTC) - timedelta(minutes=5)
    booked = make_appointment(doctor, patient, began.isoformat(timespec="minutes"), duration_minutes=120)["id"]
    admin.delete(f"/patient/{patient}")
    until = (began + timedelta(hours=1)).isoformat(timespec="minutes")
    absence = call_in(doctor, me, datetime.now(UTC).isoformat(timespec="minutes"), until).json["absence"]["id"]
    refused = admin.post(f"/patient/{patient}/restore")
    assert_refused(refused, 409)
    assert refused.json["msg"].startswith(f"Appointment {booked}: The doctor Dora Otieno is absent on ")
    assert count(app, "patients WHERE deleted_at IS NULL") == 0
    doctor.delete(f"/user/{me}/absences/{absence}")
    assert admin.post(f"/patient/{patient}/restore").status_code == 200
