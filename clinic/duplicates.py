"""Finds patients who may be the same person, by one statement that reads bounded parts of the word index."""

from functools import cache
from typing import Any

from flask import Response, after_this_request
from sqlalchemy import Select, bindparam, select, union

from clinic.search import birth_word, phone_region
from clinic.words import fold, plain_words
from models import Patient, PatientWord
from schemas import DuplicateOut, PatientOut
from server.database import db
from server.phones import read_phone

MOST_LINKS = 5  # of an answer
MOST_FOUND = 50  # patients for each reason, the newest
MOST_SHARING = 200  # patients with one phone number that are compared by name: a clinic may write 0000 for "none"

Reasons = list[str]


def duplicates_of(patient: Patient) -> list[DuplicateOut]:
    """Return the patients who may be this one, those with the most reasons first."""
    return [DuplicateOut(patient=PatientOut.of(other), reasons=reasons) for other, reasons in _found(patient)]


def linked(patient: Patient) -> Patient:
    """Return the patient, and have the answer to this request link to who may be the same (RFC 8288, "related")."""
    links = [f'</patient/{other.id}>; rel="related"' for other, _ in _found(patient)[:MOST_LINKS]]

    @after_this_request
    def add_links(response: Response) -> Response:
        response.headers.pop("Link", None)  # of a transaction that was tried again
        if links and response.status_code < 300:
            response.headers["Link"] = ", ".join(links)
        return response

    return patient


def _found(patient: Patient) -> list[tuple[Patient, Reasons]]:
    """Return who may be the same patient, each with the reasons."""
    born, first_name, last_name = patient.date_of_birth, patient.first_name, patient.last_name
    values = {
        "id": patient.id,
        "birth": birth_word(born, first_name, last_name) if born else "",
        "phone": _phone(patient),
        "names": sorted({*fold(first_name), *fold(last_name)}),
        "mrns": _with_swapped_digits(patient.mrn),
    }
    others = db.session.scalars(_statement(), values)
    found = [(other, reasons) for other in others if (reasons := _reasons(patient, other))]
    return sorted(found, key=lambda pair: (-len(pair[1]), pair[0].id))


def _reasons(patient: Patient, other: Patient) -> Reasons:
    """Return why two patients may be the same person."""
    reasons = []
    same_name = _name(patient) == _name(other)
    if same_name and patient.date_of_birth and patient.date_of_birth == other.date_of_birth:
        reasons.append("same name and birth date")
    if _phone(patient) == _phone(other):
        if same_name:
            reasons.append("same phone number and name")
        elif fold(patient.first_name) == fold(other.first_name):
            reasons.append("same phone number and first name")
        elif fold(patient.last_name) == fold(other.last_name):
            reasons.append("same phone number and last name")
    if other.mrn in _with_swapped_digits(patient.mrn):
        reasons.append("medical record numbers that differ by two swapped digits")
    return reasons


def _name(patient: Patient) -> frozenset[str]:
    return plain_words(patient.first_name, patient.last_name)


def _phone(patient: Patient) -> str:
    return read_phone(patient.phone_number, phone_region()).main


def _with_swapped_digits(mrn: str) -> list[str]:
    """Return the MRNs that differ from this one by two neighbours that changed places."""
    swapped = {mrn[:n] + mrn[n + 1] + mrn[n] + mrn[n + 2 :] for n in range(len(mrn) - 1)}
    return sorted(swapped - {mrn})


@cache
def _statement() -> Select[Patient]:
    """Select the patients to compare. Each branch reads a bounded part of an index, however many patients there are."""
    word, number = PatientWord.__table__.alias("word"), PatientWord.__table__.alias("number")
    with_birth = select(word.c.record_id).where(word.c.word == bindparam("birth"), word.c.record_id != bindparam("id"))
    with_phone = select(number.c.record_id).where(
        number.c.word == bindparam("phone"), number.c.record_id != bindparam("id")
    )
    sharing = _newest(with_phone, MOST_SHARING)
    with_name = select(word.c.record_id).join(sharing, sharing.c.record_id == word.c.record_id)
    with_phone_and_name = with_name.where(word.c.word.in_(bindparam("names", expanding=True))).distinct()
    with_mrn = select(Patient.id).where(Patient.mrn.in_(bindparam("mrns", expanding=True)))
    found = union(
        select(_newest(with_birth, MOST_FOUND)), select(_newest(with_phone_and_name, MOST_FOUND)), with_mrn
    ).subquery("found")
    return Patient.live().join(found, found.c.record_id == Patient.id)


def _newest(ids: Select[Any], most: int) -> Any:
    return ids.order_by(ids.selected_columns.record_id.desc()).limit(most).subquery()
