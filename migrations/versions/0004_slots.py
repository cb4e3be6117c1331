"""no slot is taken twice: exclusion constraints on PostgreSQL, triggers on SQLite

Of appointments that hold their slot, no two of one doctor overlap, nor two of one patient, whoever writes.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

HOLDS = (
    "{0}deleted_at IS NULL AND NOT {0}overbooked AND {0}status IN ('pending', 'scheduled', 'confirmed', 'checked_in')"
)
LONGEST = 480  # minutes: how far back the trigger has to look
COLUMNS = "appointment_datetime, duration_minutes, status, overbooked, patient_id, user_id, deleted_at"
SIDES = (("doctor", "user_id"), ("patient", "patient_id"))


def instant(row: str, minutes: str) -> str:
    """SQLite's text of a time so many minutes later, as SQLAlchemy writes it: with six decimals."""
    return f"strftime('%Y-%m-%d %H:%M:%f000', {row}.appointment_datetime, {minutes})"


def end(row: str) -> str:
    return instant(row, f"'+' || {row}.duration_minutes || ' minutes'")


MISSPELLED = """substr({0}.appointment_datetime, 1, 19)
            IS NOT strftime('%Y-%m-%d %H:%M:%S', substr({0}.appointment_datetime, 1, 19), '+0 days')
            OR substr({0}.appointment_datetime, 20) IS NOT '.000000'"""


def sqlite_form_trigger(when: str) -> str:
    """Texts are compared below, so every time has to be spelled as SQLAlchemy does, whoever writes it."""
    return f"""
        CREATE TRIGGER tr_appointments_datetime_{when.split()[0].lower()} BEFORE {when} ON appointments
        WHEN {MISSPELLED.format("NEW")}
        BEGIN
            SELECT RAISE(ABORT, 'ck_appointments_datetime');
        END"""


def sqlite_trigger(side: str, column: str, when: str) -> str:
    return f"""
        CREATE TRIGGER tr_appointments_{side}_slot_{when.split()[0].lower()} BEFORE {when} ON appointments
        WHEN {HOLDS.format("NEW.")}
        BEGIN
            SELECT RAISE(ABORT, 'ex_appointments_{side}_slot') WHERE EXISTS (
                SELECT 1 FROM appointments AS other
                WHERE other.{column} = NEW.{column} AND other.id IS NOT NEW.id AND {HOLDS.format("other.")}
                AND other.appointment_datetime > {instant("NEW", f"'-{LONGEST} minutes'")}
                AND other.appointment_datetime < {end("NEW")}
                AND {end("other")} > NEW.appointment_datetime
            );
        END"""


def postgresql_constraint(side: str, column: str) -> str:
    return f"""
        ALTER TABLE appointments ADD CONSTRAINT ex_appointments_{side}_slot EXCLUDE USING gist (
            int4range({column}, {column}, '[]') WITH =,
            tsrange(appointment_datetime AT TIME ZONE 'UTC',
                    appointment_datetime AT TIME ZONE 'UTC' + duration_minutes * interval '1 minute') WITH &&
        ) WHERE ({HOLDS.format("")})"""


def refuse_clashes(connection: sa.Connection) -> None:
    """Stops with a list when there are appointments that clash already."""
    sqlite = connection.dialect.name == "sqlite"
    misspelled = f"SELECT id, appointment_datetime FROM appointments a WHERE {MISSPELLED.format('a')} ORDER BY id"
    if sqlite and (rows := connection.exec_driver_sql(misspelled).all()):
        raise SystemExit(
            "Nothing was migrated: the times of these appointments are not spelled like 2030-03-01 10:00:00.000000. "
            "Correct them, then try again.\n" + "\n".join(f"  appointment {one}: {time}" for one, time in rows)
        )
    ends = end("a") if sqlite else "a.appointment_datetime + a.duration_minutes * interval '1 minute'"
    # the other one begins during this one: of any two that overlap, one begins during the other
    clashes = connection.exec_driver_sql(
        " UNION ".join(
            f"""SELECT '{side}', a.{column}, a.id, b.id FROM appointments a JOIN appointments b
                ON a.{column} = b.{column} AND a.id <> b.id
                AND b.appointment_datetime >= a.appointment_datetime AND b.appointment_datetime < {ends}
                AND (b.appointment_datetime > a.appointment_datetime OR b.id > a.id)
                WHERE {HOLDS.format("a.")} AND {HOLDS.format("b.")}"""
            for side, column in SIDES
        )
        + " ORDER BY 3, 4"
    ).all()
    if clashes:
        lines = [f"  {side} {who}: appointments {one} and {other}" for side, who, one, other in clashes]
        raise SystemExit(
            "Nothing was migrated: these appointments overlap. Move or cancel one of each pair, then try again.\n"
            + "\n".join(lines)
        )


def upgrade() -> None:
    sqlite = op.get_context().dialect.name == "sqlite"
    if not sqlite:
        op.execute("LOCK TABLE appointments IN SHARE ROW EXCLUSIVE MODE")  # none may come in after the look
    if not op.get_context().as_sql:
        refuse_clashes(op.get_bind())
    if sqlite:
        op.execute(sqlite_form_trigger("INSERT"))
        op.execute(sqlite_form_trigger("UPDATE OF appointment_datetime"))
    for side, column in SIDES:
        if sqlite:
            op.execute(sqlite_trigger(side, column, "INSERT"))
            op.execute(sqlite_trigger(side, column, f"UPDATE OF {COLUMNS}"))
        else:
            op.execute(postgresql_constraint(side, column))


def downgrade() -> None:
    sqlite = op.get_context().dialect.name == "sqlite"
    for when in ("insert", "update") if sqlite else ():
        op.execute(f"DROP TRIGGER tr_appointments_datetime_{when}")
    for side, _ in SIDES:
        if sqlite:
            op.execute(f"DROP TRIGGER tr_appointments_{side}_slot_insert")
            op.execute(f"DROP TRIGGER tr_appointments_{side}_slot_update")
        else:
            op.execute(f"ALTER TABLE appointments DROP CONSTRAINT ex_appointments_{side}_slot")
