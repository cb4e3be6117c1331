"""the desk: working hours, absences, and appointments outside of the hours

No slot-holding appointment lies within an absence of its doctor, whoever writes. Hours of a day do not overlap.

On PostgreSQL each of the two triggers locks the doctor's row first: an absence and a booking at the same moment come one
after the other. Under REPEATABLE READ the second would not see the first, so the triggers refuse it.

Revision ID: 0013
Revises: 0012
Create Date: 2026-11-27 07:00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

LONGEST, LONGEST_ABSENCE = 480, 366  # minutes of an appointment, days of an absence: how far back the triggers look
STATUSES = ("pending", "scheduled", "confirmed", "checked_in")
LIVE = sa.text("deleted_at IS NULL")


def holds(row: str) -> str:
    """Return the condition for an appointment that holds its slot. SQLite would fill a table for IN."""
    any_of = " OR ".join(f"{row}.status = '{status}'" for status in STATUSES)
    return f"{row}.deleted_at IS NULL AND NOT {row}.overbooked AND ({any_of})"


# --- SQLite ---


def later(time: str, change: str) -> str:
    """Return the text of a time that is so much later, as SQLAlchemy writes it: with six decimals."""
    return f"strftime('%Y-%m-%d %H:%M:%f000', {time}, {change})"


def sqlite_triggers() -> dict[str, str]:
    """Return the body of each trigger by its name, its moment and its condition."""
    appointment_end = later("{0}.appointment_datetime", "'+' || {0}.duration_minutes || ' minutes'")
    misspelled = " OR ".join(
        f"substr(NEW.{column}, 1, 19) IS NOT strftime('%Y-%m-%d %H:%M:%S', substr(NEW.{column}, 1, 19), '+0 days') "
        f"OR substr(NEW.{column}, 20) IS NOT '.000000'"
        for column in ("starts_at", "ends_at")
    )
    absence_of_booking = f"""SELECT 1 FROM absences AS other
        WHERE other.user_id = NEW.user_id AND other.deleted_at IS NULL
        AND other.starts_at > {later("NEW.appointment_datetime", f"'-{LONGEST_ABSENCE + 1} days'")}
        AND other.starts_at < {appointment_end.format("NEW")}
        AND other.ends_at > NEW.appointment_datetime"""
    bookings_of_absence = f"""SELECT 1 FROM appointments AS other
        WHERE other.user_id = NEW.user_id AND {holds("other")}
        AND other.appointment_datetime > {later("NEW.starts_at", f"'-{LONGEST} minutes'")}
        AND other.appointment_datetime < NEW.ends_at
        AND {appointment_end.format("other")} > NEW.starts_at"""
    other_absences = f"""SELECT 1 FROM absences AS other
        WHERE other.user_id = NEW.user_id AND other.id IS NOT NEW.id AND other.deleted_at IS NULL
        AND other.starts_at > {later("NEW.starts_at", f"'-{LONGEST_ABSENCE + 1} days'")}
        AND other.starts_at < NEW.ends_at AND other.ends_at > NEW.starts_at"""
    other_hours = """SELECT 1 FROM working_hours AS other
        WHERE other.user_id = NEW.user_id AND other.weekday = NEW.weekday AND other.rowid IS NOT NEW.rowid
        AND other.starts < NEW.ends AND other.ends > NEW.starts"""
    bookings = "UPDATE OF appointment_datetime, duration_minutes, status, overbooked, user_id, deleted_at"
    absences = "UPDATE OF user_id, starts_at, ends_at, deleted_at"
    made: dict[str, str] = {}
    for name, table, update, when, error, found in (
        ("appointments_absence", "appointments", bookings, holds("NEW"), "ex_appointments_absence", absence_of_booking),
        ("absences_bookings", "absences", absences, "NEW.deleted_at IS NULL", "ex_absences_bookings", bookings_of_absence),
        ("absences_overlap", "absences", absences, "NEW.deleted_at IS NULL", "ex_absences_overlap", other_absences),
        ("hours_overlap", "working_hours", "UPDATE", "1", "ex_working_hours_overlap", other_hours),
        ("absences_times", "absences", "UPDATE OF starts_at, ends_at", misspelled, "ck_absences_times", "SELECT 1"),
    ):
        for moment, event in (("insert", "INSERT"), ("update", update)):
            made[f"tr_{name}_{moment}"] = (
                f"CREATE TRIGGER tr_{name}_{moment} BEFORE {event} ON {table} WHEN {when} "
                f"BEGIN SELECT RAISE(ABORT, '{error}') WHERE EXISTS ({found}); END"
            )
    return made


# --- PostgreSQL ---

LOCKED = """
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION 'write appointments and absences under READ COMMITTED: a stricter transaction would not see '
            'what it waits for' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM 1 FROM users WHERE id = NEW.user_id FOR NO KEY UPDATE;"""
POSTGRESQL = (
    f"""
    CREATE FUNCTION fn_appointments_absence() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN {LOCKED}
        IF EXISTS (
            SELECT 1 FROM absences WHERE user_id = NEW.user_id AND deleted_at IS NULL
            AND tstzrange(starts_at, ends_at)
                && tstzrange(NEW.appointment_datetime,
                             NEW.appointment_datetime + NEW.duration_minutes * interval '1 minute')
        ) THEN
            RAISE EXCEPTION 'the doctor is absent'
                USING ERRCODE = 'exclusion_violation', CONSTRAINT = 'ex_appointments_absence';
        END IF;
        RETURN NEW;
    END $$""",
    f"""
    CREATE TRIGGER tr_appointments_absence
    BEFORE INSERT OR UPDATE OF appointment_datetime, duration_minutes, status, overbooked, user_id, deleted_at
    ON appointments FOR EACH ROW WHEN ({holds("NEW")}) EXECUTE FUNCTION fn_appointments_absence()""",
    f"""
    CREATE FUNCTION fn_absences_bookings() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN {LOCKED}
        IF EXISTS (
            SELECT 1 FROM appointments other WHERE user_id = NEW.user_id AND {holds("other")}
            AND appointment_datetime > NEW.starts_at - interval '{LONGEST} minutes'
            AND appointment_datetime < NEW.ends_at
            AND appointment_datetime + duration_minutes * interval '1 minute' > NEW.starts_at
        ) THEN
            RAISE EXCEPTION 'the doctor has appointments'
                USING ERRCODE = 'exclusion_violation', CONSTRAINT = 'ex_absences_bookings';
        END IF;
        RETURN NEW;
    END $$""",
    """
    CREATE TRIGGER tr_absences_bookings BEFORE INSERT OR UPDATE OF user_id, starts_at, ends_at, deleted_at
    ON absences FOR EACH ROW WHEN (NEW.deleted_at IS NULL) EXECUTE FUNCTION fn_absences_bookings()""",
    """
    ALTER TABLE absences ADD CONSTRAINT ex_absences_overlap EXCLUDE USING gist (
        int4range(user_id, user_id, '[]') WITH =, tstzrange(starts_at, ends_at) WITH &&
    ) WHERE (deleted_at IS NULL)""",
    """
    ALTER TABLE working_hours ADD CONSTRAINT ex_working_hours_overlap EXCLUDE USING gist (
        int4range(user_id, user_id, '[]') WITH =, int4range(weekday, weekday, '[]') WITH =,
        int4range(starts, ends) WITH &&
    )""",
)


def columns_of_records() -> list[sa.Column]:
    return [
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
    ]


def upgrade() -> None:
    sqlite = op.get_context().dialect.name == "sqlite"
    op.create_table(
        "weeks",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        *columns_of_records(),
        sa.ForeignKeyConstraint(["id"], ["users.id"], name=op.f("fk_weeks_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_weeks")),
    )
    op.create_table(
        "working_hours",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("weekday", sa.Integer(), nullable=False),
        sa.Column("starts", sa.Integer(), nullable=False),
        sa.Column("ends", sa.Integer(), nullable=False),
        sa.CheckConstraint("weekday BETWEEN 0 AND 6", name=op.f("ck_working_hours_weekday")),
        sa.CheckConstraint("0 <= starts AND starts < ends AND ends <= 1440", name=op.f("ck_working_hours_minutes")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_working_hours_user_id_users")),
        sa.PrimaryKeyConstraint("user_id", "weekday", "starts", name=op.f("pk_working_hours")),
    )
    length = (
        f"strftime('%s', ends_at) - strftime('%s', starts_at) <= {LONGEST_ABSENCE * 86_400}"
        if sqlite
        else f"ends_at - starts_at <= interval '{LONGEST_ABSENCE} days'"
    )
    op.create_table(
        "absences",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("outcome", sa.JSON(), nullable=True),
        *columns_of_records(),
        sa.CheckConstraint("ends_at > starts_at", name=op.f("ck_absences_ends_after_start")),
        sa.CheckConstraint(length, name=op.f("ck_absences_length")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_absences_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_absences")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_absences_user_id_starts_at", "absences", ["user_id", "starts_at"])
    op.add_column(
        "appointments", sa.Column("off_hours", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    for statement in sqlite_triggers().values() if sqlite else POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        for moment in ("insert", "update"):
            op.execute(f"DROP TRIGGER tr_appointments_absence_{moment}")
    else:
        op.execute("DROP TRIGGER tr_appointments_absence ON appointments")
        op.execute("DROP FUNCTION fn_appointments_absence")
    op.drop_column("appointments", "off_hours")
    for table in ("absences", "working_hours", "weeks"):
        op.drop_table(table)
    if op.get_context().dialect.name != "sqlite":
        op.execute("DROP FUNCTION fn_absences_bookings")
