"""How a search reads names and numbers: as words, without case or accents. What is stored and what is asked for are
read alike, so that one finds the other."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, delete
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import get_history

from models import LONGEST_WORD, Patient, PatientWord, User, UserWord
from server.database import db, insert_many

_BACKWARDS = "<"  # begins a number that is kept from its end to its beginning
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ـ": ""}
)
_APOSTROPHES = re.compile(r"(?<=\w)['’‘`´′](?=\w)|[ʹʻʼʾʿ]")  # the latter are letters, at the beginning too
_UNSEEN = {"Mn", "Mc", "Me", "Cf"}  # accents, vowel signs, joiners, soft hyphens
_WORD = re.compile(r"[^\W_]+")
_EXTENSION = re.compile(r"(?<=\d)\s*(?:x|ext\.?)\s*(?=\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![^\W_])[+(]*\d[\d\s()./+-]*(?![^\W_])")  # in groups, as people write it
_EXTENDED, _NO_DIGIT = re.compile("[xe]"), re.compile("[^0-9]")
_TELLING = 7  # digits: a shorter number may begin half of all


@lru_cache(maxsize=4096)
def fold(text: str) -> tuple[str, ...]:
    """The words of a text: `"José O'Brien-Łoś"` has `jose`, `obrien` and `los`."""
    plain = _APOSTROPHES.sub("", text).casefold()
    if not plain.isascii():
        apart = unicodedata.normalize("NFKD", plain).casefold()  # a mathematical 𝐀 is a capital only now
        bare = "".join(sign for sign in apart if unicodedata.category(sign) not in _UNSEEN).translate(_PLAIN)
        plain = _western(bare)
    return tuple(word[:LONGEST_WORD] for word in _WORD.findall(plain))


def _western(text: str) -> str:
    """The digits of other scripts as 0 to 9."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)


def _digits(text: str) -> str:
    return _NO_DIGIT.sub("", _western(text))


def of_name(*names: str) -> set[str]:
    return {word for name in names for word in fold(name)}


def of_phone(number: str) -> set[str]:
    """The number without and with its extension, from either end."""
    written = {_digits(_EXTENDED.split(number, 1)[0]), _digits(number)}
    return {word for digits in written for word in (digits, _BACKWARDS + digits[::-1]) if digits}


def beginnings(asked: str) -> list[list[str]]:
    """For each word asked for, the most telling first, what a stored word may begin with. A number may be in groups."""
    asked = _EXTENSION.sub("", asked)
    numbers = {_digits(number)[:LONGEST_WORD] for number in _NUMBER.findall(asked)}
    found = numbers | set(fold(_NUMBER.sub(" ", asked)))

    def telling(word: str) -> tuple[bool, int, str]:
        return word.isdecimal() and len(word) < _TELLING, -len(word), word

    return [[word, _BACKWARDS + word[::-1]] if word.isdecimal() else [word] for word in sorted(found, key=telling)]


# --- The word index ---

INDEXES: dict[type[Patient | User], type[PatientWord | UserWord]] = {Patient: PatientWord, User: UserWord}


def _words(kind: type[Patient | User], row: Any) -> set[str]:
    """Return the words that a search finds a row of this table by."""
    names = of_name(row.first_name, row.last_name)
    return names if kind is User else names | of_phone(row.phone_number) | {row.mrn}


def insert_words(connection: Connection, kind: type[Patient | User], rows: Iterable[Any]) -> None:
    """Insert the words of rows that have none yet, sorted, so that neighbours in the index are written together."""
    found = sorted((word, row.id) for row in rows for word in _words(kind, row))
    if found:
        insert_many(connection, INDEXES[kind], ("word", "record_id"), found)


def delete_words(record: Patient | User) -> None:
    """Delete the words of a record that is about to be erased, in the session's transaction."""
    table = INDEXES[type(record)]
    db.session.execute(delete(table).where(table.record_id == record.id))


def index_words(session: Session, _: Any) -> None:
    """Write the words of the patients and users that this flush has created or renamed.

    A listener of `after_flush`, so that no way of writing a record can leave its words behind.
    """
    for kind, table in INDEXES.items():
        new = [record for record in session.new if isinstance(record, kind)]
        renamed = [record for record in session.dirty if isinstance(record, kind) and _is_renamed(record)]
        if renamed:
            ids = [record.id for record in renamed]
            session.connection().execute(delete(table).where(table.record_id.in_(ids)))
        if written := new + renamed:
            insert_words(session.connection(), kind, written)


def _is_renamed(record: Patient | User) -> bool:
    names = ("first_name", "last_name", "phone_number")
    return any(get_history(record, name).has_changes() for name in names if hasattr(record, name))
