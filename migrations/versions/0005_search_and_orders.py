"""search and orders

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-22 09:05:00
"""

import re
import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The orders of the collections and their filters, over the records that are not archived.
LIVE_INDEXES = {
    "patients": (
        ("last_name", "first_name", "id"),
        ("admitted_at", "id"),
        ("status", "id"),
        ("status", "last_name", "first_name", "id"),
        ("status", "admitted_at", "id"),
    ),
    "users": (("last_name", "first_name", "id"),),
    "appointments": (
        ("user_id", "id"),
        ("status", "id"),
        ("status", "appointment_datetime", "id"),
        ("appointment_datetime", "id"),
    ),
    "reports": (("created_at", "id"), ("user_id", "id")),
}
LIVE = sa.text("deleted_at IS NULL")


def upgrade() -> None:
    for table, several in LIVE_INDEXES.items():
        for columns in several:
            name = f"ix_{table}_{'_'.join(columns)}"
            op.create_index(op.f(name), table, list(columns), sqlite_where=LIVE, postgresql_where=LIVE)
    word = sa.String(length=40).with_variant(sa.String(length=40, collation="C"), "postgresql")
    for of, kind in (("patients", "patient"), ("users", "user")):
        op.create_table(
            f"{kind}_words",
            sa.Column("word", word, nullable=False),
            sa.Column("record_id", sa.Integer(), nullable=False),
            sa.ForeignKeyConstraint(["record_id"], [f"{of}.id"], name=op.f(f"fk_{kind}_words_record_id_{of}")),
            sa.PrimaryKeyConstraint("word", "record_id", name=op.f(f"pk_{kind}_words")),
            sqlite_with_rowid=False,
        )
        op.create_index(op.f(f"ix_{kind}_words_record_id_word"), f"{kind}_words", ["record_id", "word"])
        if not op.get_context().as_sql:
            _fill(of, f"{kind}_words")


def downgrade() -> None:
    op.drop_table("user_words")
    op.drop_table("patient_words")
    for table, several in LIVE_INDEXES.items():
        for columns in several:
            op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table)


# As words.py reads them on this day.

PLAIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ـ": ""})


def _western(text):
    return "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)


def _names(text):
    apart = unicodedata.normalize("NFKD", re.sub(r"(?<=\w)['’ʼ‘`](?=\w)", "", text).casefold())
    bare = "".join(sign for sign in apart if not unicodedata.category(sign).startswith("M")).translate(PLAIN)
    return {word[:40] for word in re.findall(r"[^\W_]+", _western(bare))}


def _numbers(text):
    written = {re.sub(r"[^0-9]", "", part) for part in (re.split(r"[xe]", text)[0], text)}
    return {word for digits in written if digits for word in (digits, "<" + digits[::-1])}


def _fill(of, words):
    connection, last = op.get_bind(), 0
    numbers = "mrn, phone_number" if of == "patients" else "'', ''"
    while rows := connection.execute(
        sa.text(
            f"SELECT id, first_name, last_name, {numbers} FROM {of} WHERE id > :last ORDER BY id LIMIT 1000"  # noqa: S608
        ),
        {"last": last},
    ).all():
        found = [
            {"word": word, "record_id": row[0]}
            for row in rows
            for word in sorted(_names(row[1]) | _names(row[2]) | ({row[3]} - {""}) | _numbers(row[4]))
        ]
        if found:
            connection.execute(sa.text(f"INSERT INTO {words} (word, record_id) VALUES (:word, :record_id)"), found)  # noqa: S608
        last = rows[-1][0]
