"""Hashing and uploading run outside of transactions, and a retried transaction does not repeat them."""

from collections.abc import Callable, Iterator

import pytest
from client import Client
from factories import PASSWORD, files, make_patient, make_report, picture, sign_up
from flask import Flask, g
from sqlalchemy import text

from clinic import passwords
from clinic.idempotency import idempotent
from clinic.images import uploaded
from clinic.sessions import Caller
from models import Patient
from server.database import db, outside_transaction
from testing.cloudinary_double import CloudinaryDouble
from testing.postgresql import run_sql

LOSES_TWICE = """
CREATE SEQUENCE tries;
CREATE FUNCTION lose_twice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'lost a race' USING ERRCODE = 'serialization_failure'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER lose_twice BEFORE INSERT OR UPDATE ON reports FOR EACH ROW EXECUTE FUNCTION lose_twice();
"""
FORGET = "DROP TRIGGER lose_twice ON reports; DROP FUNCTION lose_twice; DROP SEQUENCE tries;"


# SQLite has one writer: its transactions lose no race.
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def races_to_lose(app: Flask, database_url: str) -> Iterator[None]:
    """The next two times that a report is written, PostgreSQL says that the transaction lost a race."""
    run_sql(database_url, LOSES_TWICE)
    yield
    run_sql(database_url, FORGET)


@on_postgresql
@pytest.mark.usefixtures("races_to_lose")
def test_a_transaction_is_tried_again_and_its_images_are_sent_once(
    cloud_app: Flask, cloud: CloudinaryDouble, doctor: Client
) -> None:
    doctor = Client(cloud_app, doctor.token, doctor.user)
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture("JPEG"))
    assert len(report["images"]) == len(uploads(cloud)) == 2


@on_postgresql
def test_a_change_is_tried_again_and_its_images_are_sent_once(
    cloud_app: Flask, cloud: CloudinaryDouble, doctor: Client, request: pytest.FixtureRequest
) -> None:
    doctor = Client(cloud_app, doctor.token, doctor.user)
    address = f"/reports/{make_report(doctor, make_patient(doctor)['id'])['id']}"
    request.getfixturevalue("races_to_lose")
    changed = doctor.patch(address, data={"images": files(picture(), picture("JPEG"))})
    assert (changed.status_code, changed.json["version"], len(changed.json["images"])) == (200, 2, 3)
    assert len(uploads(cloud)) == 3


def uploads(cloud: CloudinaryDouble) -> list[str]:
    return [call.action for call in cloud.requests if call.action == "upload"]


@pytest.mark.parametrize("slow", [lambda: passwords.hash_password(PASSWORD, "a@b.test"), lambda: _send_nothing()])
def test_what_takes_long_refuses_to_run_in_a_transaction(app: Flask, slow: Callable[[], object]) -> None:
    with app.app_context():
        db.session.execute(text("SELECT 1"))
        with pytest.raises(RuntimeError, match="must run outside of a transaction"):
            slow()
        with outside_transaction():
            slow()


def _send_nothing() -> None:
    with uploaded([]):
        pass


def test_a_view_that_does_not_say_what_it_made_is_found_by_its_first_key(app: Flask) -> None:
    @idempotent(Patient, lambda record_id: None)
    def forgetful() -> None:
        pass

    with app.test_request_context("/", method="POST", headers={"Idempotency-Key": "k"}):
        g.caller = Caller(sign_up(app, "Ada", "admin")["id"], "admin", 1)
        with pytest.raises(RuntimeError, match="forgetful is idempotent and must say by made"):
            forgetful()
