"""The story of `make clients` by the client of openapi-python-client, which lies beside this file."""

import os
import time
from io import BytesIO
from pathlib import Path

from generated import AuthenticatedClient, Client
from generated.api.accounts import login, signup
from generated.api.appointments import create_appointment, list_appointments
from generated.api.patients import create_patient, update_patient
from generated.api.reports import create_report
from generated.models import (
    AppointmentIn,
    AppointmentOut,
    AppointmentStatus,
    Credentials,
    PatientIn,
    PatientOut,
    PatientPatch,
    ReportInForm,
    ReportOut,
    TokensOut,
    UserIn,
    UserOut,
)
from generated.types import File

PASSWORD = "three green herons"
ADDRESS = os.environ["ADDRESS"]
email = f"doctor.{time.time_ns()}@clinic.example"
anybody = Client(base_url=ADDRESS)
doctor = signup.sync(client=anybody, body=UserIn("Tomás", "Okafor", email, PASSWORD))
assert isinstance(doctor, UserOut), doctor
tokens = login.sync(client=anybody, body=Credentials(email, PASSWORD))
assert isinstance(tokens, TokensOut), tokens
client = AuthenticatedClient(base_url=ADDRESS, token=tokens.access_token)
patient = create_patient.sync(client=client, body=PatientIn("Amina", "Wanjiru", "+254 712 345 678"))
assert isinstance(patient, PatientOut), patient
record = PatientPatch.from_dict(patient.to_dict())
assert isinstance(update_patient.sync(patient.id, client=client, body=record), PatientOut)
images = [File(BytesIO(Path(path).read_bytes()), "a.png", "image/png") for path in os.environ["IMAGES"].split(":")]
report = create_report.sync(client=client, body=ReportInForm(patient.id, images=images))
assert isinstance(report, ReportOut), report
assert len(report.images) == 2
booked = create_appointment.sync(client=client, body=AppointmentIn("2031-02-03T10:00", patient.id))
assert isinstance(booked, AppointmentOut), booked
assert booked.appointment_datetime.isoformat() == "2031-02-03T10:00:00+03:00"
status = [AppointmentStatus.SCHEDULED, AppointmentStatus.NO_SHOW]
found = list_appointments.sync(client=client, patient_id=[patient.id], status=status)
assert isinstance(found, list), found
assert len(found) == 1
