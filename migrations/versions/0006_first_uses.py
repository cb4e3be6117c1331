"""first uses of refresh tokens

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-25 17:30:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("login_sessions", sa.Column("first_uses", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("login_sessions", "first_uses")
