"""ETag and If-Match: nobody overwrites a change that they have not seen."""

from typing import Any

import pytest
from client import Client, at_once
from factories import files, make_appointment, make_patient, make_report, picture
from flask import Flask
from sql import stored_files


def make(kind: str, doctor: Client) -> str:
    """The address of a new record of this kind; for a user, of the doctor."""
    if kind == "user":
        return f"/user/{doctor.user['id']}"
    patient = make_patient(doctor)["id"]
    if kind == "patient":
        return f"/patient/{patient}"
    made = (make_appointment if kind == "appointment" else make_report)(doctor, patient)
    return f"/{kind}/{made['id']}"


CHANGE: dict[str, dict[str, Any]] = {
    "user": {"first_name": "Dorothea"},
    "patient": {"diagnosis": "Malaria"},
    "appointment": {"status": "confirmed"},
    "reports": {"diagnosis": "Fracture"},
}
KINDS = tuple(CHANGE)


@pytest.mark.parametrize("kind", KINDS)
def test_one_record_has_a_strong_etag_that_changes_with_it(doctor: Client, kind: str) -> None:
    address = make(kind, doctor)
    assert doctor.get(address).headers["ETag"] == '"1"'
    assert doctor.patch(address, CHANGE[kind]).headers["ETag"] == '"2"'
    assert doctor.get(address).headers["ETag"] == '"2"'


def test_a_collection_has_no_etag(doctor: Client) -> None:
    make_patient(doctor)
    assert "ETag" not in doctor.get("/patients").headers


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_another_version_is_refused(doctor: Client, kind: str) -> None:
    address = make(kind, doctor)
    doctor.patch(address, CHANGE[kind])
    before = doctor.get(address).json
    refused = doctor.patch(address, CHANGE[kind], headers={"If-Match": '"1"'})
    assert refused.status_code == 412
    assert refused.json["msg"] == "The record has changed: it is at version 2 now. Read it again."
    assert doctor.get(address).json["version"] == before["version"]
    assert doctor.patch(address, CHANGE[kind], headers={"If-Match": '"2"'}).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_an_archiving_of_another_version_is_refused(admin: Client, doctor: Client, kind: str) -> None:
    address = make(kind, doctor)
    doctor.patch(address, CHANGE[kind])
    assert admin.delete(address, headers={"If-Match": '"1"'}).status_code == 412
    assert admin.delete(address, headers={"If-Match": '"2"'}).status_code == 200


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ("*", 200),
        ('"1"', 200),
        ('"7", "1"', 200),
        ('"7","8"', 412),
        ('W/"1"', 200),  # as nginx makes it of a compressed answer
        ('W/"7"', 412),
        ('W/"1", "1"', 200),
        ('"11"', 412),
        ("", 412),
        ("nonsense", 412),
    ],
)
def test_if_match_is_read_as_rfc_9110_has_it_but_a_weak_tag_counts(doctor: Client, tags: str, status: int) -> None:
    address = make("patient", doctor)
    assert doctor.patch(address, CHANGE["patient"], headers={"If-Match": tags}).status_code == status


def test_what_is_not_there_or_not_ones_own_is_said_before_the_version(doctor: Client, other_doctor: Client) -> None:
    address = make("appointment", doctor)
    stale = {"headers": {"If-Match": '"7"'}}
    assert doctor.patch("/appointment/99", {}, **stale).status_code == 404
    assert other_doctor.patch(address, {}, **stale).status_code == 403


def test_new_images_make_a_new_version_of_their_report(doctor: Client) -> None:
    address = make("reports", doctor)
    added = doctor.patch(address, data={"images": files(picture("JPEG"))}, headers={"If-Match": '"1"'})
    assert (added.status_code, added.headers["ETag"]) == (200, '"2"')
    replaced = doctor.patch(address, data={"images": files(picture()), "replace_images": "true"})
    assert replaced.headers["ETag"] == '"3"' == doctor.get(address).headers["ETag"]


def test_images_for_a_version_that_is_gone_are_not_kept(app: Flask, doctor: Client) -> None:
    address = make("reports", doctor)
    doctor.patch(address, CHANGE["reports"])
    refused = doctor.patch(address, data={"images": files(picture("JPEG"))}, headers={"If-Match": '"1"'})
    assert refused.status_code == 412
    assert len(stored_files(app)) == 1


def test_of_those_who_change_one_version_at_once_one_succeeds(app: Flask, doctor: Client) -> None:
    address = make("patient", doctor)

    def change(n: int) -> int:
        client = Client(app, doctor.token)
        return client.patch(address, {"diagnosis": f"Guess {n}"}, headers={"If-Match": '"1"'}).status_code

    assert sorted(at_once(*((lambda n=n: change(n)) for n in range(6)))) == [200] + [412] * 5


def test_changes_at_once_without_if_match_never_mix(app: Flask, doctor: Client) -> None:
    """Each writes both fields alike. Were they to mix, in the end they would differ, or a version be lost."""
    address = make("patient", doctor)

    def change(n: int) -> int:
        both = {"diagnosis": f"Guess {n}", "doctor_summary": f"Guess {n}"}
        answer = Client(app, doctor.token).patch(address, both)
        return answer.status_code if answer.json["diagnosis"] == answer.json["doctor_summary"] else 0

    assert sorted(at_once(*((lambda n=n: change(n)) for n in range(8)))) == [200] * 8
    after = doctor.get(address).json
    assert (after["version"], after["diagnosis"]) == (9, after["doctor_summary"])


def test_changes_at_once_that_are_each_right_cannot_be_wrong_together(app: Flask, doctor: Client) -> None:
    address = f"/patient/{make_patient(doctor, admitted_at='2026-03-02', discharged_at='2026-03-08')['id']}"

    def change(fields: dict[str, str]) -> int:
        return Client(app, doctor.token).patch(address, fields).status_code

    later, sooner = {"admitted_at": "2026-03-07"}, {"discharged_at": "2026-03-03"}
    assert sorted(at_once(lambda: change(later), lambda: change(sooner))) == [200, 422]


def test_a_report_that_gets_images_from_several_at_once_keeps_them_all(app: Flask, doctor: Client) -> None:
    address = make("reports", doctor)

    def add(colour: str) -> int:
        form = {"images": files(picture(colour=colour))}
        return Client(app, doctor.token).patch(address, data=form).status_code

    assert sorted(at_once(*((lambda c=c: add(c)) for c in ("red", "green", "blue", "white")))) == [200] * 4
    report = doctor.get(address).json
    assert (len(report["images"]), report["version"]) == (5, 5)
