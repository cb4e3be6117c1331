"""No doctor and no patient has two appointments at the same time, even if somebody writes past the server."""

from collections.abc import Callable
from typing import Any

import pytest
from client import Client, at_once, migrate
from factories import hours_ago, make_appointment, make_patient
from flask import Flask
from sql import sql
from sqlalchemy.exc import IntegrityError

HOLDING = ("pending", "scheduled", "confirmed", "checked_in")
FREE = ("completed", "cancelled", "no_show")


def book(client: Client, patient_id: int, at: str, **fields: Any) -> int:
    """The status of the answer to a booking."""
    body = {"patient_id": patient_id, "appointment_datetime": at, **fields}
    return client.post("/appointment", body).status_code


def overbook(admin: Client, doctor: Client, at: str = "2030-03-01T10:00") -> dict[str, Any]:
    patient = make_patient(doctor)["id"]
    return make_appointment(
        admin, patient, at, user_id=doctor.user["id"], overbooked=True, reason="An emergency, no other room"
    )


INSERT = (
    "INSERT INTO appointments (appointment_datetime, duration_minutes, status, reason, overbooked, patient_id, user_id,"
    " created_at, updated_at, version) VALUES (:at, :minutes, :status, '', false, :patient, :doctor,"
    " '2026-01-01 00:00:00', '2026-01-01 00:00:00', 1)"
)


def insert(app: Flask, patient: int, doctor: Client, at: str, minutes: int = 30, status: str = "scheduled") -> None:
    sql(app, INSERT, at=at, minutes=minutes, status=status, patient=patient, doctor=doctor.user["id"])


def test_a_slot_that_is_taken_is_refused_and_the_appointment_in_the_way_is_named(doctor: Client) -> None:
    first = make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T10:00")
    body = {"patient_id": make_patient(doctor)["id"], "appointment_datetime": "2030-03-01T10:29"}
    refused = doctor.post("/appointment", body)
    assert refused.status_code == 409
    assert refused.json["msg"] == f"The doctor has appointment {first['id']} on 1 March 2030, from 10:00 to 10:30."
    assert refused.json["errors"].keys() == {"appointment_datetime"}


def test_a_patient_cannot_be_in_two_places(doctor: Client, other_doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient, "2030-03-01T10:00", duration_minutes=60)
    refused = other_doctor.post("/appointment", {"patient_id": patient, "appointment_datetime": "2030-03-01T09:31"})
    assert refused.status_code == 409
    assert refused.json["msg"].startswith("The patient has appointment 1")


def test_one_may_begin_when_the_other_ends(doctor: Client) -> None:
    patient, other = make_patient(doctor)["id"], make_patient(doctor)["id"]
    make_appointment(doctor, patient, "2030-03-01T10:00")
    assert book(doctor, other, "2030-03-01T10:30") == 201
    assert book(doctor, other, "2030-03-01T09:30") == 201


@pytest.mark.parametrize(
    ("at", "minutes"),
    [
        ("2030-03-01T10:00", 60),
        ("2030-03-01T10:20", 5),
        ("2030-03-01T09:00", 480),
        ("2030-03-01T10:55", 5),
        ("2030-03-01T09:01", 60),
        ("2030-03-01T12:59+02:00", 30),
    ],
    ids=["the same", "within", "around", "its end", "its beginning", "in another zone"],
)
def test_every_way_to_overlap_is_refused(doctor: Client, at: str, minutes: int) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T10:00", duration_minutes=60)
    assert book(doctor, make_patient(doctor)["id"], at, duration_minutes=minutes) == 409


def test_the_longest_appointment_blocks_until_its_last_minute(doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T20:00", duration_minutes=480)
    patient = make_patient(doctor)["id"]
    assert book(doctor, patient, "2030-03-02T03:59") == 409
    assert book(doctor, patient, "2030-03-02T04:00") == 201


@pytest.mark.parametrize("status", HOLDING)
def test_each_state_that_holds_a_slot_blocks_and_is_blocked(doctor: Client, status: str) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], status=status)
    assert book(doctor, make_patient(doctor)["id"], "2030-03-01T10:10", status=status) == 409


@pytest.mark.parametrize("status", FREE)
def test_an_appointment_that_is_over_neither_blocks_nor_is_blocked(doctor: Client, status: str) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], hours_ago(0), status=status)
    assert book(doctor, make_patient(doctor)["id"], hours_ago(0)) == 201
    assert book(doctor, make_patient(doctor)["id"], hours_ago(0), status=status) == 201


@pytest.mark.parametrize(
    "change",
    [
        {"status": "confirmed"},
        {"status": "confirmed", "duration_minutes": 5},
    ],
    ids=["as it was", "shorter"],
)
def test_taking_a_cancelled_one_up_again_is_refused(doctor: Client, change: dict[str, Any]) -> None:
    make_appointment(doctor, make_patient(doctor)["id"])
    cancelled = make_appointment(doctor, make_patient(doctor)["id"], status="cancelled")["id"]
    refused = doctor.patch(f"/appointment/{cancelled}", change)
    assert refused.status_code == 409
    assert "appointment 1 " in refused.json["msg"]


@pytest.mark.parametrize("change", [{"duration_minutes": 31}, {"appointment_datetime": "2030-03-01T09:31"}], ids=str)
def test_moving_and_lengthening_are_refused(doctor: Client, change: dict[str, Any]) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T10:00")
    earlier = make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T09:30")["id"]
    assert doctor.patch(f"/appointment/{earlier}", change).status_code == 409
    assert doctor.get(f"/appointment/{earlier}").json["version"] == 1


def test_an_appointment_does_not_stand_in_its_own_way(doctor: Client) -> None:
    mine = make_appointment(doctor, make_patient(doctor)["id"])
    moved = doctor.patch(f"/appointment/{mine['id']}", {**mine, "appointment_datetime": "2030-03-01T10:10"})
    assert moved.status_code == 200, moved.json


def test_another_doctor_who_is_taken_is_refused(admin: Client, doctor: Client, other_doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"])
    theirs = make_appointment(other_doctor, make_patient(doctor)["id"])
    refused = admin.patch(f"/appointment/{theirs['id']}", {"user_id": doctor.user["id"]})
    assert refused.status_code == 409
    assert refused.json["msg"].startswith("The doctor has appointment 1")


def test_another_patient_who_is_taken_is_refused(doctor: Client, other_doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient)
    theirs = make_appointment(other_doctor, make_patient(doctor)["id"])
    refused = other_doctor.patch(f"/appointment/{theirs['id']}", {"patient_id": patient})
    assert refused.status_code == 409
    assert refused.json["msg"].startswith("The patient has appointment 1")


def test_an_archived_appointment_frees_its_slot_and_cannot_come_back_into_it(admin: Client, doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"])
    assert doctor.delete("/appointment/1").status_code == 200
    second = make_appointment(doctor, make_patient(doctor)["id"])
    refused = admin.post("/appointment/1/restore")
    assert refused.status_code == 409
    assert f"appointment {second['id']} " in refused.json["msg"]
    doctor.delete(f"/appointment/{second['id']}")
    assert admin.post("/appointment/1/restore").status_code == 200


def test_an_administrator_may_overbook_and_the_history_says_who_and_why(admin: Client, doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"])
    made = overbook(admin, doctor)
    history = doctor.get(f"/appointment/{made['id']}/history").json
    assert history[0]["changes"]["overbooked"] == {"from": None, "to": True}
    assert history[0]["changes"]["reason"]["to"] == "An emergency, no other room"
    assert history[0]["actor_name"] == "Ada Otieno"


def test_overbooking_takes_a_reason(admin: Client, doctor: Client) -> None:
    body = {"patient_id": make_patient(doctor)["id"], "appointment_datetime": "2030-03-01T10:00", "overbooked": True}
    assert admin.post("/appointment", body).json["errors"] == {"reason": ["Please say why this is overbooked."]}


def test_a_doctor_may_not_overbook(doctor: Client) -> None:
    assert book(doctor, make_patient(doctor)["id"], "2030-03-01T10:00", overbooked=True, reason="please") == 403


def test_an_overbooked_appointment_neither_blocks_nor_is_blocked(admin: Client, doctor: Client) -> None:
    overbook(admin, doctor)
    assert book(doctor, make_patient(doctor)["id"], "2030-03-01T10:00") == 201
    overbook(admin, doctor)


def test_an_overbooked_appointment_is_refused_once_it_is_so_no_more(admin: Client, doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"])
    made = overbook(admin, doctor)
    assert doctor.patch(f"/appointment/{made['id']}", {"reason": "Still an emergency"}).json["overbooked"] is True
    assert admin.patch(f"/appointment/{made['id']}", {"overbooked": False}).status_code == 409


@pytest.mark.parametrize("to", ["2030-03-01T12:00", "2030-03-01T10:10"], ids=["a free slot", "a taken one"])
def test_an_overbooked_appointment_that_a_doctor_moves_is_overbooked_no_more(
    admin: Client, doctor: Client, to: str
) -> None:
    make_appointment(doctor, make_patient(doctor)["id"])
    made = overbook(admin, doctor)
    moved = doctor.patch(f"/appointment/{made['id']}", {**made, "appointment_datetime": to})
    assert moved.status_code == (200 if to.endswith("12:00") else 409)
    assert doctor.get(f"/appointment/{made['id']}").json["overbooked"] is not to.endswith("12:00")


@pytest.mark.parametrize("change", [{"duration_minutes": 45}, {"patient_id": 1}], ids=["longer", "another patient"])
def test_an_overbooked_appointment_that_a_doctor_lengthens_or_gives_away_is_so_no_more(
    admin: Client, doctor: Client, change: dict[str, int]
) -> None:
    assert make_patient(doctor)["id"] == 1
    made = overbook(admin, doctor)
    changed = doctor.patch(f"/appointment/{made['id']}", change)
    assert (changed.status_code, changed.json["overbooked"]) == (200, False)


def test_an_overbooked_appointment_is_never_named_as_the_one_in_the_way(admin: Client, doctor: Client) -> None:
    overbook(admin, doctor, "2030-03-01T09:45")
    ordinary = make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T10:00")
    body = {"patient_id": make_patient(doctor)["id"], "appointment_datetime": "2030-03-01T10:10"}
    assert f"appointment {ordinary['id']} " in doctor.post("/appointment", body).json["msg"]


def test_an_administrator_moves_an_overbooked_appointment_as_it_is(admin: Client, doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T12:00")
    made = overbook(admin, doctor)
    moved = admin.patch(f"/appointment/{made['id']}", {"appointment_datetime": "2030-03-01T12:10"})
    assert (moved.status_code, moved.json["overbooked"]) == (200, True)


# --- Whoever writes ---


def test_an_insert_behind_the_servers_back_is_refused(app: Flask, doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"])
    with pytest.raises(IntegrityError, match="ex_appointments_doctor_slot"):
        insert(app, make_patient(doctor)["id"], doctor, "2030-03-01 10:29:00.000000")
    insert(app, make_patient(doctor)["id"], doctor, "2030-03-01 10:30:00.000000")


def test_an_insert_for_a_taken_patient_is_refused(app: Flask, doctor: Client, other_doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient)
    with pytest.raises(IntegrityError, match="ex_appointments_patient_slot"):
        insert(app, patient, other_doctor, "2030-03-01 09:31:00.000000")


@pytest.mark.parametrize(
    "change",
    [
        "appointment_datetime = '2030-03-01 10:00:00.000000'",
        "duration_minutes = 121",
        "status = 'pending', appointment_datetime = '2030-03-01 10:15:00.000000'",
        "deleted_at = NULL, appointment_datetime = '2030-03-01 10:15:00.000000'",
        "user_id = 2, patient_id = 1, overbooked = false, appointment_datetime = '2030-03-01 10:15:00.000000'",
    ],
    ids=["moved", "lengthened", "taken up", "restored", "all at once"],
)
def test_an_update_behind_the_servers_back_is_refused(app: Flask, doctor: Client, change: str) -> None:
    make_appointment(doctor, make_patient(doctor)["id"])
    make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T08:00")
    with pytest.raises(IntegrityError, match="ex_appointments_"):
        sql(app, f"UPDATE appointments SET {change} WHERE id = 2")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL has a type for times
@pytest.mark.parametrize(
    "at", ["2030-03-01T10:00:00", "2030-03-01 10:00", "2030-02-30 10:00:00.000000", "tomorrow", "1898546400"]
)
def test_sqlite_takes_no_time_spelled_in_another_way(app: Flask, doctor: Client, at: str) -> None:
    """Its triggers compare texts, so that another spelling could slip past them."""
    with pytest.raises(IntegrityError, match="ck_appointments_datetime"):
        insert(app, make_patient(doctor)["id"], doctor, at)


# --- Clocks ---


def test_naive_times_are_told_apart_when_the_clocks_change(
    doctor: Client, at_home: Callable[[Client, str], Client]
) -> None:
    """In Berlin 02:30 comes twice on 27 October 2030; the first, in summer time, is meant unless the offset is told."""
    there = at_home(doctor, "Europe/Berlin")
    first = make_appointment(there, make_patient(there)["id"], "2030-10-27T02:30")
    assert first["appointment_datetime"] == "2030-10-27T02:30:00+02:00"
    assert book(there, make_patient(there)["id"], "2030-10-27T02:30:00+01:00") == 201
    assert book(there, make_patient(there)["id"], "2030-10-27T02:45:00+02:00") == 409


def test_an_appointment_lasts_as_long_as_it_says_when_the_clocks_change(
    doctor: Client, at_home: Callable[[Client, str], Client]
) -> None:
    """01:30 to 03:30 by the wall clock is one hour in March: the slot is free again at 03:30."""
    there = at_home(doctor, "Europe/Berlin")
    make_appointment(there, make_patient(there)["id"], "2030-03-31T01:30", duration_minutes=60)
    patient = make_patient(there)["id"]
    refused = there.post("/appointment", {"patient_id": patient, "appointment_datetime": "2030-03-31T03:29"})
    assert "on 31 March 2030, from 01:30 (+01:00) to 03:30 (+02:00)." in refused.json["msg"]
    assert book(there, patient, "2030-03-31T03:30") == 201


# --- At once ---


def test_of_ten_who_book_one_slot_at_once_one_gets_it(app: Flask, doctor: Client) -> None:
    patients = [make_patient(doctor)["id"] for _ in range(10)]

    def booking(patient: int) -> Callable[[], int]:
        return lambda: book(Client(app, doctor.token), patient, "2030-03-01T10:00")

    assert sorted(at_once(*map(booking, patients))) == [201] + [409] * 9


def test_of_two_doctors_who_book_one_patient_at_once_one_gets_them(
    app: Flask, doctor: Client, other_doctor: Client
) -> None:
    patient = make_patient(doctor)["id"]

    def booking(token: str | None) -> Callable[[], int]:
        return lambda: book(Client(app, token), patient, "2030-03-01T10:00")

    assert sorted(at_once(*map(booking, [doctor.token, other_doctor.token] * 3))) == [201] + [409] * 5


def test_of_ten_moved_to_one_slot_at_once_one_arrives(app: Flask, doctor: Client) -> None:
    mine = [make_appointment(doctor, make_patient(doctor)["id"], f"2030-03-01T{8 + n:02}:00") for n in range(10)]

    def move(appointment: int) -> Callable[[], int]:
        change = {"appointment_datetime": "2030-03-02T10:00"}
        return lambda: Client(app, doctor.token).patch(f"/appointment/{appointment}", change).status_code

    assert sorted(at_once(*(move(one["id"]) for one in mine))) == [200] + [409] * 9


# --- The migration ---


@pytest.fixture
def without_walls(bare_app: Flask) -> Flask:
    """Before the migration that refuses clashes: doctor 7, patients 1 and 2."""
    migrate(bare_app, "upgrade", "0003")
    stamps = "'2026-01-01 00:00:00', '2026-01-01 00:00:00', 1"
    sql(
        bare_app,
        "INSERT INTO users (id, first_name, last_name, email, password, role, is_active, created_at, updated_at,"
        f" version) VALUES (7, 'A', 'B', 'a@clinic.test', '', 'doctor', true, {stamps})",
    )
    for patient in (1, 2):
        sql(
            bare_app,
            "INSERT INTO patients (id, mrn, first_name, last_name, phone_number, status, doctor_summary, diagnosis,"
            f" created_at, updated_at, version) VALUES ({patient}, '{patient}', 'A', 'B', '0', 'admitted', '', '',"
            f" {stamps})",
        )
    return bare_app


def test_a_migration_of_appointments_that_clash_already_stops_with_a_list(without_walls: Flask) -> None:
    for patient, at, minutes, status in (
        (1, "10:00", 480, "scheduled"),
        (2, "17:59", 30, "pending"),
        (2, "18:30", 30, "confirmed"),
        (2, "18:30", 30, "cancelled"),
        (2, "18:30", 30, "scheduled"),
    ):
        values = {"at": f"2030-03-01 {at}:00.000000", "minutes": minutes, "status": status}
        sql(without_walls, INSERT, **values, patient=patient, doctor=7)
    stopped = without_walls.test_cli_runner().invoke(args=["db", "upgrade"])
    assert isinstance(stopped.exception, SystemExit)
    assert str(stopped.exception).splitlines()[1:] == [
        "  doctor 7: appointments 1 and 2",
        "  doctor 7: appointments 3 and 5",
        "  patient 2: appointments 3 and 5",
    ]
    sql(without_walls, "UPDATE appointments SET status = 'cancelled' WHERE id IN (2, 3)")
    migrate(without_walls, "upgrade")


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
def test_a_migration_of_times_that_are_spelled_otherwise_stops_with_a_list(without_walls: Flask) -> None:
    for at in ("2030-03-01 10:00:00.000000", "2030-03-02T10:00:00", "2030-03-03 10:00", "tomorrow"):
        sql(without_walls, INSERT, at=at, minutes=30, status="scheduled", patient=1, doctor=7)
    stopped = without_walls.test_cli_runner().invoke(args=["db", "upgrade"])
    assert isinstance(stopped.exception, SystemExit)
    told, *listed = str(stopped.exception).splitlines()
    assert "not spelled like 2030-03-01 10:00:00.000000" in told
    assert listed == [
        "  appointment 2: 2030-03-02T10:00:00",
        "  appointment 3: 2030-03-03 10:00",
        "  appointment 4: tomorrow",
    ]
    assert sql(without_walls, "SELECT version_num FROM alembic_version") == [("0003",)]
    sql(without_walls, "UPDATE appointments SET appointment_datetime = '2030-03-0' || id || ' 10:00:00.000000'")
    migrate(without_walls, "upgrade")
