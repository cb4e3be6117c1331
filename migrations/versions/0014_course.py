"""discharges are counted by an index

Revision ID: 0014
Revises: 0012
Create Date: 2026-11-27 07:00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0012"
branch_labels = None
depends_on = None

LIVE = sa.text("deleted_at IS NULL")


def upgrade() -> None:
    name = op.f("ix_patients_discharged_at")
    op.create_index(name, "patients", ["discharged_at"], sqlite_where=LIVE, postgresql_where=LIVE)


def downgrade() -> None:
    op.drop_index(op.f("ix_patients_discharged_at"), "patients")
