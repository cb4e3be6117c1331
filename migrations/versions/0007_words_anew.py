"""words anew: letters that are apostrophes, joiners, and capitals that are signs of their own are read as people ask

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-25 17:40:00
"""

import re
import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if not op.get_context().as_sql:
        _add("patients", "patient_words")
        _add("users", "user_words")


def downgrade() -> None:
    """What was read before is still among the words."""


# As words.py reads names on this day.

PLAIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ـ": ""})


def _western(text):
    return "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)


def _names(text):
    plain = re.sub(r"(?<=\w)['’‘`´′](?=\w)|[ʹʻʼʾʿ]", "", text).casefold()
    apart = unicodedata.normalize("NFKD", plain).casefold()
    bare = "".join(sign for sign in apart if unicodedata.category(sign) not in ("Mn", "Mc", "Me", "Cf"))
    return {word[:40] for word in re.findall(r"[^\W_]+", _western(bare.translate(PLAIN)))}


def _add(of, words):
    connection, last = op.get_bind(), 0
    some = sa.text(f"SELECT id, first_name, last_name FROM {of} WHERE id > :last ORDER BY id LIMIT 1000")  # noqa: S608  # a table of our own
    while rows := connection.execute(some, {"last": last}).all():
        found = [
            {"word": word, "record_id": row[0]}
            for row in rows
            if not (row[1] + row[2]).isascii()
            for word in sorted(_names(row[1]) | _names(row[2]))
        ]
        if found:
            statement = f"INSERT INTO {words} (word, record_id) VALUES (:word, :record_id) ON CONFLICT DO NOTHING"  # noqa: S608  # a table of our own
            connection.execute(sa.text(statement), found)
        last = rows[-1][0]
