"""Appointments and reports show their patient and doctor in every answer."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from client import Client
from factories import files, make_patient, picture
from werkzeug.test import TestResponse

PATIENT = ("id", "first_name", "last_name", "mrn", "phone_number", "date_of_birth")
DOCTOR = ("id", "first_name", "last_name")

SENT: dict[str, Callable[[], dict[str, Any]]] = {
    "/appointment": lambda: {"json": {"patient_id": 1, "appointment_datetime": "2030-03-01T10:00"}},
    "/reports": lambda: {"data": {"patient_id": "1", "images": files(picture())}},
}


def answers(doctor: Client, admin: Client, address: str) -> Iterator[TestResponse]:
    """Every answer with the first record at this address: made, replayed, read, changed, refused, restored."""
    key = {"Idempotency-Key": "made-once"}
    yield doctor.post(address, **SENT[address](), headers=key)
    yield doctor.post(address, **SENT[address](), headers=key)
    for path in (address, f"{address}?limit=1", f"{address}/1"):
        yield doctor.get(path)
    record = doctor.get(f"{address}/1").json
    yield doctor.patch(f"{address}/1", {**record, "patient": None, "doctor": {"id": 7}})
    doctor.delete(f"{address}/1")
    yield admin.post(f"{address}/1/restore")


@pytest.mark.parametrize("birth", ["1990-05-31", None])
@pytest.mark.parametrize("address", SENT)
def test_every_answer_has_the_patient_and_the_doctor(
    admin: Client, doctor: Client, address: str, birth: str | None
) -> None:
    patient = make_patient(doctor, date_of_birth=birth)
    for response in answers(doctor, admin, address):
        assert response.status_code in (200, 201), response.json
        record = response.json[0] if isinstance(response.json, list) else response.json
        assert record["patient"] == {name: patient[name] for name in PATIENT}
        assert record["doctor"] == {name: doctor.user[name] for name in DOCTOR}
        assert (record["patient_name"], record["doctor_name"]) == ("Amina Wanjiru", "Dora Otieno")
