"""the role receptionist, and a note beside the reason of an appointment

The earlier release writes appointments without a note, so the column has a default of the server.

Revision ID: 0012
Revises: 0011
Create Date: 2026-11-27 07:10:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

BEFORE, NOW = "role IN ('admin', 'doctor')", "role IN ('admin', 'doctor', 'receptionist')"


def upgrade() -> None:
    op.add_column("appointments", sa.Column("note", sa.Text(), nullable=False, server_default=sa.text("''")))
    _allow(NOW)


def downgrade() -> None:
    op.execute("UPDATE users SET role = 'doctor', version = version + 1 WHERE role = 'receptionist'")
    _allow(BEFORE)
    op.drop_column("appointments", "note")


def _allow(roles: str) -> None:
    """Replace the constraint. SQLite makes the table anew; it has no triggers that this would drop."""
    on_sqlite = op.get_context().dialect.name == "sqlite"
    last = on_sqlite and op.get_bind().scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'users'"))
    with op.batch_alter_table("users", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.drop_constraint(op.f("ck_users_role"), type_="check")
        table.create_check_constraint(op.f("ck_users_role"), roles)
    if last:  # the new table begins at its greatest id, and an erased user may have had a greater one
        op.execute("DELETE FROM sqlite_sequence WHERE name = 'users'")
        op.execute(f"INSERT INTO sqlite_sequence (name, seq) VALUES ('users', {last})")
