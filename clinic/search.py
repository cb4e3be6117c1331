"""Search by words: the word index, what a search text asks of it, and the SQL that matches words.

A record's text and a search text are folded alike, so case, accents and punctuation do not matter. The other spellings
of a name and of a phone number are words of the record; the words of the search text stay as they are.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from typing import Any

from flask import current_app
from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    Subquery,
    and_,
    bindparam,
    delete,
    false,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import get_history

from clinic.words import fold, plain_words, words_of_person
from models import LONGEST_WORD, Patient, PatientWord, Record, User, UserWord
from server import phones
from server.database import db, in_transaction, insert_many

# --- The words of a record ---

INDEXES: dict[type[Record], type[PatientWord | UserWord]] = {Patient: PatientWord, User: UserWord}

_REVERSED = "<"  # begins a number that is indexed with its digits in reverse order
_BIRTH = "="  # begins a birth date, which the words of the name follow


def phone_region() -> str:
    """Return the ISO 3166 country of phone numbers without a country code, "" for none."""
    region: str = current_app.config["PHONE_REGION"]
    return region


def phone_words(number: str, region: str) -> set[str]:
    """Return the digits of a phone number: international, national, and in reverse; each with the extension, too."""
    phone = phones.read_phone(number, region)
    words = {phone.main, phone.national, _REVERSED + phone.main[::-1]}
    if phone.extension:
        whole = phone.main + phone.extension
        words |= {whole, phone.national + phone.extension, _REVERSED + whole[::-1]}
    return words


def birth_word(born: date | None, first_name: str, last_name: str) -> str:
    """Return the word that two patients share if they have the same birth date and the same words in their names.

    Each record has this one word that begins with `=`; a user's and an unknown birth date are blank.
    """
    return f"{_BIRTH}{born or ''} {' '.join(sorted(plain_words(first_name, last_name)))}"[:LONGEST_WORD]


def _words(kind: type[Patient | User], row: Any, region: str) -> frozenset[str]:
    """Return the words that a search finds a row of this table by."""
    names = words_of_person(row.first_name, row.last_name)
    if kind is User:
        return names | {birth_word(None, row.first_name, row.last_name)}
    born = birth_word(row.date_of_birth, row.first_name, row.last_name)
    return names | phone_words(row.phone_number, region) | {row.mrn, born}


def insert_words(connection: Connection, kind: type[Patient | User], rows: Iterable[Any]) -> None:
    """Insert the words of rows that have none yet, sorted, so that neighbours in the index are written together.

    A patient is found by the words of the patients who were merged into them, too, save for their birth dates.
    """
    region, rows = phone_region(), list(rows)
    words = {(word, row.id) for row in rows for word in _words(kind, row, region)}
    survivors = {other["id"]: row.id for row in rows for other in getattr(row, "merged", None) or ()}
    if survivors:
        merged = connection.execute(select(Patient.__table__).where(Patient.id.in_(survivors)))
        words |= {
            (word, survivors[row.id])
            for row in merged
            for word in _words(Patient, row, region)
            if not word.startswith(_BIRTH)
        }
    if words:
        insert_many(connection, INDEXES[kind], ("word", "record_id"), sorted(words))


def delete_words(record: Patient | User) -> None:
    """Delete the words of a record that is about to be erased, in the session's transaction."""
    index = INDEXES[type(record)]
    db.session.execute(delete(index).where(index.record_id == record.id))


def index_words(session: Session, _: Any) -> None:
    """Write the words of the patients and users that this flush has created, renamed or merged.

    This is a listener of `after_flush`, so that no code that writes a record can forget its words.
    """
    kind: type[Patient | User]
    for kind in (Patient, User):
        new = [record for record in session.new if isinstance(record, kind)]
        renamed = [record for record in session.dirty if isinstance(record, kind) and _is_renamed(record)]
        if renamed:
            index = INDEXES[kind]
            ids = [record.id for record in renamed]
            session.connection().execute(delete(index).where(index.record_id.in_(ids)))
        if records := new + renamed:
            insert_words(session.connection(), kind, records)


def _is_renamed(record: Patient | User) -> bool:
    names = ("first_name", "last_name", "phone_number", "date_of_birth", "merged")
    return any(get_history(record, name).has_changes() for name in names if hasattr(record, name))


def index_again(kind: type[Patient | User], size: int = 1000) -> Iterator[int]:
    """Write the words of all records anew, `size` records to a transaction. Yields the number of each."""
    columns = [column for name, column in kind.__table__.c.items() if name not in ("password", "deleted_at")]
    index, last = INDEXES[kind], 0

    def index_batch() -> list[int]:
        batch = select(*columns).where(kind.id > last).order_by(kind.id).limit(size).with_for_update(key_share=True)
        rows = db.session.execute(batch).all()
        ids = [row.id for row in rows]
        db.session.execute(delete(index).where(index.record_id.in_(ids)))
        insert_words(db.session.connection(), kind, rows)
        return ids

    while ids := in_transaction(index_batch):
        last = ids[-1]
        yield len(ids)


# --- The words of a search text ---

_EXTENSION = re.compile(rf"(?<=\d){phones.EXTENSION}(?=\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![^\W_])[+(]*\d[\d\s()./+-]*(?![^\W_])")  # its digits may be in groups
_DATE = re.compile(r"(?<![\w./-])(?:(\d{4})-(\d\d?)-(\d\d?)|(\d\d?)([./])(\d\d?)\5(\d{4}))(?![./-]?\w)")
_RARE_NUMBER = 7  # digits; many phone numbers may begin with a shorter number
_TELLING_END = 8  # digits: numbers with the same last digits are the same, if PHONE_REGION is not set

Prefixes = tuple[str, ...]  # in the order of the index; an indexed word has one of them


def _prefixes(q: str) -> list[Prefixes]:
    """Return for each word of a search the prefixes that an indexed word may have, the most selective word first."""
    q = phones.plain_signs(q)
    dates = {match[0]: _date_prefixes(match) for match in _DATE.finditer(q)}
    words = {prefixes for prefixes in dates.values() if prefixes}
    for date_text, prefixes in dates.items():
        q = q.replace(date_text, " ") if prefixes else q
    q = _EXTENSION.sub("", q)
    words |= {_number_prefixes(number) for number in _NUMBER.findall(q)}
    words |= {(word,) for word in fold(_NUMBER.sub(" ", q))}

    def selectivity(prefixes: Prefixes) -> tuple[bool, int, Prefixes]:
        return prefixes[0].isdecimal() and len(prefixes[0]) < _RARE_NUMBER, -len(prefixes[0]), prefixes

    return sorted(words, key=selectivity)


def _date_prefixes(match: re.Match[str]) -> Prefixes:
    """Return the prefixes of a birth date: 1980-05-31, 31.5.1980, 5/31/1980, and 3/5/1980 as either; () for no date."""
    year, month, day, first, _, second, last = match.groups()
    spellings = [(year, month, day)] if year else [(last, second, first), (last, first, second)]
    dates = set()
    for spelling in spellings:
        with suppress(ValueError):
            dates.add(_BIRTH + date(*map(int, spelling)).isoformat())
    return tuple(sorted(dates))


def _number_prefixes(text: str) -> Prefixes:
    """Return the prefixes of a number, with its digits in their order and, for the end of a number, in reverse."""
    digits = phones.digits_of(phones.without_trunk(text))[:LONGEST_WORD]
    end = digits if "+" in text else phones.DIALLED.sub("", digits, 1)
    begins = {digits, end}
    if not phone_region() and len(end) > _TELLING_END:
        end = end[-_TELLING_END:]
    return tuple(sorted(begins | {_REVERSED + end[::-1]}))


# --- Matching ---
#
# A search finds a record that has, for each word of the search, an indexed word with one of its prefixes. Prefix M of
# word N is the range from parameter word_N_M to word_N_M_end. Word 0 gives the order: a page begins after the indexed
# word from_M_0 and the record id from_M_1.

_LAST_CHARACTER = "\U0010ffff"  # ends the range of words with a prefix


def parameters(q: str, born: date | None, after: Sequence[Any]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return for each word of a search the number of its prefixes, and the values of the statement's parameters.

    `born` is a birth date that must match besides. `after` is the word and the id that the page before ended with;
    empty for the first page.
    """
    words = _prefixes(q if born is None else f"{q} {born}")
    values: dict[str, Any] = {}
    for n, several in enumerate(words):
        for m, prefix in enumerate(several):
            values |= {f"word_{n}_{m}": prefix, f"word_{n}_{m}_end": prefix + _LAST_CHARACTER}
    for m, prefix in enumerate(words[0] if words else ()):
        values[f"from_{m}_0"], values[f"from_{m}_1"] = max((prefix, 0), tuple(after))  # ids begin at 1
    return tuple(map(len, words)), values


def rows(
    records: Select[Any],
    kind: type[Record],
    words: Sequence[int],
    conditions: Sequence[ColumnElement[bool]],
    limit: BindParameter[int] | None = None,
) -> Select[Any]:
    """Select those `records` that a search finds, ordered by the word that matched, which is the last column."""
    if not words:
        return records.add_columns(literal("")).where(false())
    found = _matches(kind, words, conditions, limit)
    selected: Select[Any] = records.add_columns(found.c.word).join(found, found.c.record_id == kind.id)
    return selected.order_by(found.c.word, found.c.record_id).limit(limit)


def found(kind: type[Record], words: Sequence[int], conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """Select the ids of the records that a search finds."""
    return select(_matches(kind, words, conditions).c.record_id) if words else select(literal(0)).where(false())


def _matches(
    kind: type[Record],
    words: Sequence[int],
    conditions: Sequence[ColumnElement[bool]],
    limit: BindParameter[int] | None = None,
) -> Subquery:
    """Select the word and the id of each record found; with a limit those of one page."""
    index = INDEXES[kind]
    key = index.__table__.c.word, index.__table__.c.record_id
    first, *others = [[f"word_{n}_{m}" for m in range(number)] for n, number in enumerate(words)]
    conditions = [*conditions, _has_word(index, first, key[0]), *(_has_word(index, other) for other in others)]
    branches: list[CTE] = []
    for n, prefix in enumerate(first):
        left: ColumnElement[int] | None = limit
        for before in branches if limit is not None else ():  # the prefixes are in order: fill what is left of the page
            left = left - select(func.count()).select_from(before).scalar_subquery()
        matching = _has_prefix(key[0], prefix)
        if limit is not None:
            # One lower bound: the greater of the prefix and the cursor.
            start = tuple_(*(bindparam(f"from_{n}_{m}", type_=column.type) for m, column in enumerate(key)))
            matching = and_(tuple_(*key) > start, key[0] < bindparam(f"{prefix}_end", type_=key[0].type))
        branch = select(*key).join_from(index, kind, kind.id == index.record_id).where(matching, *conditions)
        if limit is not None:
            branch = branch.order_by(*key).limit(left)
        branches.append(branch.cte(f"match_{n}"))
    return union_all(*(select(branch.c.word, branch.c.record_id) for branch in branches)).subquery("match")


def _has_prefix(word: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    start, end = (bindparam(name, type_=word.type) for name in (prefix, f"{prefix}_end"))
    return and_(word >= start, word < end)


def _has_word(
    index: type[PatientWord | UserWord], prefixes: Sequence[str], first: ColumnElement[str] | None = None
) -> ScalarSelect[bool]:
    """Whether the record has a word with one of the prefixes; with `first`, whether that is the first such word.

    As a scalar subquery, both engines look it up by the index for each row they reach. As EXISTS or as a comparison
    PostgreSQL expects few matches: it then gathers and sorts all matches of the table, and reads on only then.
    """
    other, found = index.__table__.alias(), index.__table__
    matching = or_(*(_has_prefix(other.c.word, prefix) for prefix in prefixes))
    least = func.min(other.c.word)
    return (
        select(least.is_not(None) if first is None else least == first)
        .where(other.c.record_id == found.c.record_id, matching)
        .correlate(found)
        .scalar_subquery()
    )
