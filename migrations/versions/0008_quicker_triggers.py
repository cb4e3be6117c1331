"""quicker triggers: for IN, SQLite fills a table at each run of one, which takes longer than all the rest of it

Revision ID: 0008
Revises: 0007
Create Date: 2026-11-25 18:40:00
"""

import re

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_context().dialect.name != "sqlite" or op.get_context().as_sql:
        return
    slots = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'tr_appointments_%_slot_%'"
    for name, trigger in op.get_bind().exec_driver_sql(slots).all():
        op.execute(f"DROP TRIGGER {name}")
        op.get_bind().exec_driver_sql(re.sub(r"(\w+\.status) IN \(([^)]+)\)", _any_of, trigger))


def _any_of(words: re.Match[str]) -> str:
    return f"({' OR '.join(f'{words[1]} = {word}' for word in words[2].split(', '))})"


def downgrade() -> None:
    """They say the same."""
