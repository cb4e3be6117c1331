"""people are found by every spelling of their names and phone numbers, and by their birth date

Revision ID: 0010
Revises: 0009
Create Date: 2026-11-26 20:30:00
"""

import re
import unicodedata
from functools import lru_cache

import sqlalchemy as sa
from alembic import op
from flask import current_app

from server.migrating import rewrite_rows

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

LIVE = sa.text("deleted_at IS NULL")
# Each record has one word that begins with "=", and what older code has written has none.
TODO = "NOT EXISTS (SELECT 1 FROM {0} w WHERE w.record_id = {1}.id AND w.word >= '=' AND w.word < '>')"


def upgrade() -> None:
    rewrite_rows("users", TODO.format("user_words", "users"), _rewrite_users)
    rewrite_rows("patients", TODO.format("patient_words", "patients"), _rewrite_patients)
    name = op.f("ix_patients_date_of_birth_id")
    op.create_index(name, "patients", ["date_of_birth", "id"], sqlite_where=LIVE, postgresql_where=LIVE)


def downgrade() -> None:
    op.drop_index(op.f("ix_patients_date_of_birth_id"), "patients")
    for words in ("patient_words", "user_words"):
        op.execute(f"DELETE FROM {words} WHERE word >= '=' AND word < '>'")  # noqa: S608  # the others do no harm


def _rewrite_users(connection, ids):
    rows = _rows(connection, "SELECT id, first_name, last_name FROM users WHERE id IN :ids", ids)
    _write(connection, "user_words", {row[0]: _names(*row[1:]) | {_key("", *row[1:])} for row in rows})


def _rewrite_patients(connection, ids):
    columns = "id, first_name, last_name, phone_number, mrn, date_of_birth"
    rows = _rows(connection, f"SELECT {columns} FROM patients WHERE id IN :ids", ids)  # noqa: S608
    region = current_app.config["PHONE_REGION"]
    words = {
        id_: _names(first, last) | _numbers(number, region) | {mrn, _key(born or "", first, last)}
        for id_, first, last, number, mrn, born in rows
    }
    _write(connection, "patient_words", words)


def _rows(connection, statement, ids):
    return connection.execute(sa.text(statement).bindparams(sa.bindparam("ids", ids, expanding=True))).all()


def _write(connection, table, words):
    ids = sa.bindparam("ids", list(words), expanding=True)
    connection.execute(sa.text(f"DELETE FROM {table} WHERE record_id IN :ids").bindparams(ids))  # noqa: S608
    rows = sorted((word[:40], id_) for id_, several in words.items() for word in several)
    insert = sa.text(f"INSERT INTO {table} (word, record_id) VALUES (:word, :record_id) ON CONFLICT DO NOTHING")  # noqa: S608
    connection.execute(insert, [{"word": word, "record_id": id_} for word, id_ in rows])


# The rules of clinic/words.py, clinic/search.py and server/phones.py at this migration. A test holds them equal.

PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ـ": ""}
    | {"ة": "ه", "ٱ": "ا", "ى": "ي", "ی": "ي", "ک": "ك", "ہ": "ه", "ھ": "ه", "ە": "ه"}
)
MARKS = "'’‘`´′＇"
DROPPED = ("Mn", "Mc", "Me", "Cf")
OUT = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "Ø": "Oe", "Å": "Aa"}
)
PART = re.compile(
    rf"(?<=\w)[{MARKS}ʹʻʼ](?=\w)"
    "|(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-ÖØ-Þ])"
    r"|(?i:(?<=\bmc)(?=[^\W\d_]{3})|(?<=\b(?:al|el))(?=(?![aeiou])[^\W\d_]{4})|(?<=\bdela)(?=[^\W\d_]{4})"
    r"|(?<=\b(?:abdul|abdel))(?=[^\W\d_]{3})|(?<=\bعبد)(?=[^\W\d_]{3}))"
)
LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
SYLLABLES = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"


def _digits(text):
    return re.sub("[^0-9]", "", text)


@lru_cache(4096)
def _fold(text):
    plain = re.sub(rf"(?<=\w)[{MARKS}](?=\w)|[ʹʻʼʾʿ]", "", text).casefold()
    apart = unicodedata.normalize("NFKD", plain).casefold()
    bare = "".join(sign for sign in apart if unicodedata.category(sign) not in DROPPED).translate(PLAIN)
    western = "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in bare)
    return tuple(word[:40] for word in re.findall(r"[^\W_]+", western))


def _parts(name):
    return _fold(PART.sub(" ", name))


def _contracted(name):
    return re.sub(r"(?<![aeiouq])([aou])e(?=[^\W\d_])(?!l\b)", r"\1", name, flags=re.IGNORECASE)


@lru_cache(4096)
def _name(name):
    words = set(_fold(name))
    composed = unicodedata.normalize("NFC", name)
    written_out = composed.translate(OUT) if re.search("[äöüøåÄÖÜØÅ]", composed) else name
    for spelling in {name, written_out, _contracted(name)}:
        parts = _parts(spelling)
        words |= {*_fold(spelling), *parts[6:]} | {"".join(parts[n:6])[:40] for n in range(min(len(parts), 6))}
    return words


def _names(first_name, last_name):
    words = _name(first_name) | _name(last_name)
    if (first_name + last_name).isascii():
        return words
    first, last = (
        re.findall(f"[{LETTERS}{SYLLABLES}]+", unicodedata.normalize("NFC", name)) for name in (first_name, last_name)
    )
    if first and last:
        return words | {"".join(_fold(both))[:40] for both in (first_name + last_name, last_name + first_name)}
    return words | {word for name in first or last for tail in _tails(name) for word in _fold(tail)}


def _tails(name):
    if re.match(f"[{SYLLABLES}]", name):
        return [name[n:] for n in range(1, min(len(name), 4))]
    return [name[n:] for n in range(2, len(name) - 1) if unicodedata.category(name[n]) not in DROPPED][:16]


def _key(born, first_name, last_name):
    words = {word for name in (first_name, last_name) for word in _parts(_contracted(name))}
    return f"={born} {' '.join(sorted(words))}"[:40]


def _numbers(number, region):
    international, national, extension = _phone(number, region)
    main = international or national
    ways = {main, national, "<" + main[::-1]}
    if extension:
        ways |= {main + extension, national + extension, "<" + (main + extension)[::-1]}
    return ways


def _phone(number, region):
    main, _, extension = number.replace("e", "x", 1).partition("x")
    digits, extension = _digits(main), _digits(extension)
    plus = "+" in main
    if plus or (len(digits) >= 9 and re.match("00[1-9]", digits)):
        whole = _digits(re.sub(r"\(\s*0\s*\)", "", main))
        whole = whole if plus else whole.removeprefix("00")
        international, national = _known(whole) or _parsed(f"+{whole}", None)
        if international:
            return international, national, extension
        if plus:
            country, rest = _split(whole)
            return whole, _national(country, rest) if country else whole, extension
    return (*(_parsed(digits, region) if region else ("", digits)), extension)


@lru_cache
def _country(code):
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata, region_code_for_country_code

    if not code or code[0] == "0" or int(code) not in COUNTRY_CODE_TO_REGION_CODE:
        return None
    plan = PhoneMetadata.metadata_for_region_or_calling_code(int(code), region_code_for_country_code(int(code)))
    trunks = []
    for form in plan.number_format:
        leading = form.leading_digits_pattern[-1] if form.leading_digits_pattern else ""
        before = (form.national_prefix_formatting_rule or "").partition(r"\1")[0]
        trunks.append((f"(?={leading})(?:{form.pattern})$", _digits(before)))
    if len({trunk for _, trunk in trunks}) == 1:
        trunks = [("", trunks[0][1])]
    return plan.general_desc.possible_length, plan.national_prefix_for_parsing, trunks


def _split(digits):
    for length in (1, 2, 3):
        if country := _country(digits[:length]):
            return country, digits[length:]
    return None, digits


def _national(country, rest):
    return next((trunk for numbers, trunk in country[2] if re.match(numbers, rest)), "") + rest


def _known(digits):
    country, rest = _split(digits)
    if country is None or len(rest) not in country[0] or (country[1] and re.match(country[1], rest)):
        return None
    return digits, _national(country, rest)


def _parsed(text, region):
    from phonenumbers import NumberParseException, ValidationResult, format_number, is_possible_number_with_reason, parse

    try:
        number = parse(text, region)
    except NumberParseException:
        return "", _digits(text)
    if is_possible_number_with_reason(number) != ValidationResult.IS_POSSIBLE:
        return "", _digits(text)
    international = _digits(format_number(number, 0))
    known = _known(international)
    return international, known[1] if known else _digits(format_number(number, 2))
