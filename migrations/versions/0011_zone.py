"""the zone that times were entered under is kept beside the keys of the history

Revision ID: 0011
Revises: 0010
Create Date: 2026-11-27 01:10:00

The earlier release writes the row without it: null means that nobody has said it yet.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clinic", sa.Column("timezone", sa.String(64), nullable=True))


def downgrade() -> None:
    op.drop_column("clinic", "timezone")
