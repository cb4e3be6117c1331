"""Walls of the desk in the database: no slot-holding appointment in an absence, whoever writes, on both engines."""

from typing import Any

import pytest
from client import Client
from factories import make_appointment, make_patient
from flask import Flask
from sql import sql
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

NOW = "'2030-01-01 00:00:00.000000', '2030-01-01 00:00:00.000000', 1"


def at(app: Flask, time: str) -> str:
    """A time in the spelling of the database."""
    zone = "" if app.config["DATABASE_URL"].startswith("sqlite") else "+00"
    return f"'{time.replace('T', ' ')}:00.000000{zone}'"


def absence(app: Flask, user_id: int, start: str, end: str, **fields: Any) -> str:
    deleted = "NULL" if not fields.get("archived") else at(app, "2029-01-01T00:00")
    return (
        "INSERT INTO absences (user_id, starts_at, ends_at, reason, created_at, updated_at, version, deleted_at) "
        f"VALUES ({user_id}, {at(app, start)}, {at(app, end)}, '', {NOW}, {deleted})"
    )


def hours(user_id: int, weekday: int, starts: int, ends: int) -> str:
    return f"INSERT INTO working_hours (user_id, weekday, starts, ends) VALUES ({user_id}, {weekday}, {starts}, {ends})"


def test_no_absence_is_written_over_a_slot_and_no_slot_into_an_absence(app: Flask, doctor: Client) -> None:
    patient, me = make_patient(doctor)["id"], doctor.user["id"]
    booked = make_appointment(doctor, patient, "2030-03-01T10:00")["id"]
    for start, end in (("10:29", "11:00"), ("09:00", "10:01"), ("10:10", "10:20"), ("00:00", "23:00")):
        with pytest.raises(IntegrityError):
            sql(app, absence(app, me, f"2030-03-01T{start}", f"2030-03-01T{end}"))
    sql(app, absence(app, me, "2030-03-01T09:00", "2030-03-01T10:00"))  # they may touch
    sql(app, absence(app, me, "2030-03-01T10:30", "2031-03-01T10:30"))
    for change in (
        f"appointment_datetime = {at(app, '2030-03-01T09:31')}",
        f"appointment_datetime = {at(app, '2031-02-20T10:00')}",
        "duration_minutes = 31",
    ):
        with pytest.raises(IntegrityError):
            sql(app, f"UPDATE appointments SET {change} WHERE id = {booked}")


def test_what_holds_no_slot_is_in_nobodys_way(app: Flask, doctor: Client) -> None:
    patient, me = make_patient(doctor)["id"], doctor.user["id"]
    booked = make_appointment(doctor, patient, "2030-03-01T10:00")["id"]
    sql(app, f"UPDATE appointments SET status = 'cancelled' WHERE id = {booked}")
    sql(app, absence(app, me, "2030-03-01T09:00", "2030-03-01T12:00"))
    with pytest.raises(IntegrityError):
        sql(app, f"UPDATE appointments SET status = 'scheduled' WHERE id = {booked}")
    sql(app, f"UPDATE appointments SET deleted_at = updated_at, status = 'scheduled' WHERE id = {booked}")
    with pytest.raises(IntegrityError):
        sql(app, f"UPDATE appointments SET deleted_at = NULL WHERE id = {booked}")
    sql(app, f"UPDATE absences SET deleted_at = {at(app, '2030-01-01T00:00')}")
    sql(app, f"UPDATE appointments SET deleted_at = NULL WHERE id = {booked}")
    with pytest.raises(IntegrityError):
        sql(app, "UPDATE absences SET deleted_at = NULL")


def test_an_appointment_does_not_go_to_a_doctor_who_is_absent(app: Flask, doctor: Client, other_doctor: Client) -> None:
    booked = make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T10:00")["id"]
    sql(app, absence(app, other_doctor.user["id"], "2030-03-01T10:10", "2030-03-01T10:20"))
    with pytest.raises(IntegrityError):
        sql(app, f"UPDATE appointments SET user_id = {other_doctor.user['id']} WHERE id = {booked}")


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2030-03-01T10:00", "2030-03-01T10:00"),
        ("2030-03-01T10:00", "2030-03-01T09:00"),
        ("2030-03-01T10:00", "2031-03-03T10:00"),
        ("2030-05-01T10:59", "2030-05-01T12:00"),
        ("2030-05-01T01:00", "2031-04-01T12:00"),
        ("2030-05-01T10:10", "2030-05-01T10:20"),
    ],
)
def test_absences_have_a_length_and_do_not_overlap(app: Flask, doctor: Client, start: str, end: str) -> None:
    me = doctor.user["id"]
    sql(app, absence(app, me, "2030-05-01T10:00", "2030-05-01T11:00"))
    sql(app, absence(app, me, "2030-05-01T11:00", "2030-05-01T12:00"))
    with pytest.raises(IntegrityError):
        sql(app, absence(app, me, start, end))
    if end > start and end < "2031-03-03":
        sql(app, absence(app, me, start, end, archived=True))


@pytest.mark.parametrize(
    ("weekday", "starts", "ends"), [(7, 0, 60), (-1, 0, 60), (0, 60, 60), (0, -1, 60), (0, 0, 1441), (0, 539, 600)]
)
def test_hours_are_those_of_a_day_and_do_not_overlap(
    app: Flask, doctor: Client, weekday: int, starts: int, ends: int
) -> None:
    me = doctor.user["id"]
    sql(app, hours(me, 0, 480, 540), hours(me, 0, 540, 550), hours(me, 1, 480, 540))
    with pytest.raises(IntegrityError):
        sql(app, hours(me, weekday, starts, ends))
    if starts == 539:
        with pytest.raises(IntegrityError):
            sql(app, f"UPDATE working_hours SET starts = 500 WHERE user_id = {me} AND starts = 540")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_would_not_see_the_other_is_refused(app: Flask, doctor: Client, level: str) -> None:
    booked = make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T10:00")["id"]

    def strictly(statement: str) -> None:
        with app.app_context():
            engine = app.extensions["sqlalchemy"].engine
            with engine.connect().execution_options(isolation_level=level) as connection:
                begun: Connection = connection
                with begun.begin():
                    begun.exec_driver_sql(statement)

    for statement in (
        absence(app, doctor.user["id"], "2030-05-01T10:00", "2030-05-01T11:00"),
        f"UPDATE appointments SET duration_minutes = 20 WHERE id = {booked}",
    ):
        with pytest.raises(DBAPIError, match="READ COMMITTED"):
            strictly(statement)
    strictly(f"UPDATE appointments SET reason = 'x' WHERE id = {booked}")
