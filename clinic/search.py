"""Search by words: folding of texts, the word index, and the SQL that matches words.

A record's text and a search text are folded alike, so case, accents and punctuation do not matter.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

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

from models import LONGEST_WORD, Patient, PatientWord, Record, User, UserWord
from server.database import db, insert_many

# --- Folding ---

_REVERSED = "<"  # begins a number that is indexed with its digits in reverse order
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ـ": ""}
)
_APOSTROPHES = re.compile(r"(?<=\w)['’‘`´′](?=\w)|[ʹʻʼʾʿ]")  # Unicode counts the second set as letters
_DROPPED = {"Mn", "Mc", "Me", "Cf"}  # Unicode categories: accents, vowel signs, joiners, soft hyphens
_WORD = re.compile(r"[^\W_]+")
_EXTENSION = re.compile(r"(?<=\d)\s*(?:x|ext\.?)\s*(?=\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![^\W_])[+(]*\d[\d\s()./+-]*(?![^\W_])")  # its digits may be in groups
_BEFORE_EXTENSION, _NO_DIGIT = re.compile("[xe]"), re.compile("[^0-9]")
_RARE_NUMBER = 7  # digits; many phone numbers may begin with a shorter number


@lru_cache(maxsize=4096)
def fold(text: str) -> tuple[str, ...]:
    """Return the words of a text: `"José O'Brien-Łoś"` has `jose`, `obrien` and `los`."""
    plain = _APOSTROPHES.sub("", text).casefold()
    if not plain.isascii():
        # Fold the case again: only the normal form of a mathematical 𝐀 is a capital letter.
        decomposed = unicodedata.normalize("NFKD", plain).casefold()
        kept = (character for character in decomposed if unicodedata.category(character) not in _DROPPED)
        plain = _ascii_digits("".join(kept).translate(_PLAIN))
    return tuple(word[:LONGEST_WORD] for word in _WORD.findall(plain))


def _ascii_digits(text: str) -> str:
    """Replace the decimal digits of all scripts by 0 to 9."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(character)) if character.isdecimal() else character for character in text)


def _digits(text: str) -> str:
    return _NO_DIGIT.sub("", _ascii_digits(text))


def _name_words(*names: str) -> set[str]:
    return {word for name in names for word in fold(name)}


def _phone_words(number: str) -> set[str]:
    """Return the digits with and without the extension, each also in reverse, to be found by the last digits."""
    numbers = {_digits(_BEFORE_EXTENSION.split(number, 1)[0]), _digits(number)}
    return {word for digits in numbers for word in (digits, _REVERSED + digits[::-1]) if digits}


def _prefixes(q: str) -> list[list[str]]:
    """Return the words of a search, the most selective first: for each the prefixes that an indexed word may have."""
    q = _EXTENSION.sub("", q)
    numbers = {_digits(number)[:LONGEST_WORD] for number in _NUMBER.findall(q)}
    words = numbers | set(fold(_NUMBER.sub(" ", q)))

    def selectivity(word: str) -> tuple[bool, int, str]:
        return word.isdecimal() and len(word) < _RARE_NUMBER, -len(word), word

    return [[word, _REVERSED + word[::-1]] if word.isdecimal() else [word] for word in sorted(words, key=selectivity)]


# --- The word index ---

INDEXES: dict[type[Record], type[PatientWord | UserWord]] = {Patient: PatientWord, User: UserWord}


def _words(kind: type[Patient | User], row: Any) -> set[str]:
    """Return the words that a search finds a row of this table by."""
    names = _name_words(row.first_name, row.last_name)
    return names if kind is User else names | _phone_words(row.phone_number) | {row.mrn}


def insert_words(connection: Connection, kind: type[Patient | User], rows: Iterable[Any]) -> None:
    """Insert the words of rows that have none yet, sorted, so that neighbours in the index are written together."""
    words = sorted((word, row.id) for row in rows for word in _words(kind, row))
    if words:
        insert_many(connection, INDEXES[kind], ("word", "record_id"), words)


def delete_words(record: Patient | User) -> None:
    """Delete the words of a record that is about to be erased, in the session's transaction."""
    index = INDEXES[type(record)]
    db.session.execute(delete(index).where(index.record_id == record.id))


def index_words(session: Session, _: Any) -> None:
    """Write the words of the patients and users that this flush has created or renamed.

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
    names = ("first_name", "last_name", "phone_number")
    return any(get_history(record, name).has_changes() for name in names if hasattr(record, name))


# --- Matching ---
#
# A search finds a record that has, for each word of the search, an indexed word with one of its prefixes. Prefix M of
# word N is the range from parameter word_N_M to word_N_M_end. Word 0 gives the order: a page begins after the indexed
# word from_M_0 and the record id from_M_1.

_LAST_CHARACTER = "\U0010ffff"  # ends the range of words with a prefix


def parameters(q: str, after: Sequence[Any]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return for each word of a search the number of its prefixes, and the values of the statement's parameters.

    `after` is the word and the id that the page before ended with; empty for the first page.
    """
    words = _prefixes(q)
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


def count(kind: type[Record], words: Sequence[int], conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """Select the number of records that a search finds."""
    return select(func.count()).select_from(_matches(kind, words, conditions)) if words else select(literal(0))


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
        if branches and limit is not None:
            # Reversed numbers sort after all other words: they fill what the first branch leaves of the page.
            left = limit - select(func.count()).select_from(branches[0]).scalar_subquery()
        matching = _has_prefix(key[0], prefix)
        if limit is not None:
            # One lower bound: the greater of the prefix and the cursor.
            start = tuple_(*(bindparam(f"from_{n}_{m}", type_=column.type) for m, column in enumerate(key)))
            matching = and_(tuple_(*key) > start, key[0] < bindparam(f"{prefix}_end", type_=key[0].type))
        branch = select(*key).join_from(index, kind, kind.id == index.record_id).where(matching, *conditions)
        branches.append(branch.order_by(*key).limit(left).cte(f"match_{n}"))
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
