"""audit keys: entries and heads carry the number of their key, entries the version of their spelling

Revision ID: 0009
Revises: 0008
Create Date: 2026-11-26 19:10:00

The server defaults are right for what the earlier release writes: it goes on writing beside this schema.
A downgrade keeps the entries, but the earlier release cannot verify those with spelling 2.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COLUMNS = (("audit_entries", "spelling"), ("audit_entries", "key_number"), ("audit_heads", "key_number"))


def upgrade() -> None:
    op.create_table(
        "clinic",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("audit_keys", sa.Text(), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_clinic_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clinic")),
    )
    for table, column in COLUMNS:
        op.add_column(table, sa.Column(column, sa.Integer(), server_default="1", nullable=False))


def downgrade() -> None:
    for table, column in reversed(COLUMNS):
        op.drop_column(table, column)
    op.drop_table("clinic")
