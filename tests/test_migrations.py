"""The migrations make, undo and change the schema, and its constraints hold."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from client import Client, assert_refused, migrate
from factories import make_patient, sign_in, sign_up
from flask import Flask
from sql import rows, sql
from sqlalchemy import Engine, inspect
from sqlalchemy.exc import IntegrityError

from server.database import db

MIGRATIONS = Path(__file__).parent.parent / "migrations"


def engine_of(app: Flask) -> Engine:
    with app.app_context():
        engine: Engine = app.extensions["sqlalchemy"].engine
    return engine


def tables(app: Flask) -> set[str]:
    return set(inspect(engine_of(app)).get_table_names())


def test_the_schema_is_made_from_nothing_and_agrees_with_the_models(bare_app: Flask) -> None:
    assert tables(bare_app) == set()
    migrate(bare_app, "upgrade")
    assert tables(bare_app) > {"users", "patients", "appointments", "reports", "images"}
    migrate(bare_app, "check")


def test_the_schema_is_taken_down_to_nothing_and_made_again(bare_app: Flask) -> None:
    migrate(bare_app, "upgrade")
    migrate(bare_app, "downgrade", "base")
    assert tables(bare_app) == {"alembic_version"}
    assert rows(bare_app, "SELECT * FROM alembic_version") == []
    migrate(bare_app, "upgrade")
    migrate(bare_app, "check")


def test_every_migration_is_undone_and_done_again_by_itself(bare_app: Flask) -> None:
    migrate(bare_app, "upgrade")
    for _ in MIGRATIONS.glob("versions/*.py"):
        before = tables(bare_app)
        migrate(bare_app, "downgrade")
        migrate(bare_app, "upgrade", "+1")
        assert tables(bare_app) == before
        migrate(bare_app, "downgrade")
    assert rows(bare_app, "SELECT * FROM alembic_version") == []


def test_the_migrations_are_one_line_without_forks() -> None:
    assert len(ScriptDirectory(str(MIGRATIONS)).get_heads()) == 1


def test_a_database_without_its_schema_is_not_ready(bare_app: Flask) -> None:
    refused = Client(bare_app).get("/readyz")
    assert_refused(refused, 503)
    assert "flask db upgrade" in refused.json["msg"]
    assert Client(bare_app).get("/healthz").status_code == 200


def test_a_database_one_migration_behind_is_not_ready(bare_app: Flask) -> None:
    migrate(bare_app, "upgrade")
    assert Client(bare_app).get("/readyz").status_code == 200
    migrate(bare_app, "downgrade")
    assert_refused(Client(bare_app).get("/readyz"), 503)


NAMES = (
    *(("Amina", name) for name in ("José", "Oʻktam", "علی\u200cرضا", "𝐀lba", "فاطمة الزهراء", "İpek", "Straße")),
    *(("Anne-Marie", name) for name in ("de la Cruz", "Al-Hassan", "Alhassan", "McDonald", "O’Brien", "Mu\u0308ller")),
    *(("Juergen", name) for name in ("Mueller-Lüdenscheidt", "Ødegård", "a b c d e f g h", "عبدالله", "Abdulrahman")),
    *(("小明", "王"), ("王小明", "-"), ("-", "김민준"), ("สมชายใจดี", "-"), ("สมชาย", "ใจดี"), ("x" * 100, "Ж" * 100)),
)
NUMBERS = (
    *("+254 712 345 678 x7", "0712 345 678 ext. 12", "00254 712 345 678", "254712345678", "+44 (0)20 7946 0958", "911"),
    *(
        "+1 415 555 2671",
        "+54 9 11 2345 6789",
        "+86 138 1234 5678",
        "+7 912 345 67 89",
        "+999 123 456",
        "+254 71",
        "000",
        "000 254",
    ),
)


@pytest.mark.parametrize("region", ["", "KE"])
def test_the_migrations_read_the_words_that_the_application_writes(bare_app: Flask, region: str) -> None:
    bare_app.config["PHONE_REGION"] = region
    migrate(bare_app, "upgrade")
    for n, (first_name, last_name) in enumerate(NAMES):
        sign_up(bare_app, f"u{n}", first_name=first_name, last_name=last_name)
    ada = sign_in(bare_app, "u0")
    for n, (first_name, last_name) in enumerate(NAMES):
        born = {"date_of_birth": "1980-05-31"} if n % 2 else {}
        number = NUMBERS[n % len(NUMBERS)]
        make_patient(ada, first_name=first_name, last_name=last_name, phone_number=number, **born)
    words = [f"SELECT word, record_id FROM {of}_words" for of in ("patient", "user")]
    written = [set(rows(bare_app, statement)) for statement in words]
    migrate(bare_app, "downgrade", "0004")
    migrate(bare_app, "upgrade")
    assert [set(rows(bare_app, statement)) for statement in words] == written


def test_words_that_older_code_writes_during_the_upgrade_are_written_anew(used_app: Flask) -> None:
    """And those that are right already stay: an upgrade that was stopped goes on where it was."""
    migrate(used_app, "downgrade", "0009")
    with engine_of(used_app).begin() as connection:
        connection.exec_driver_sql("INSERT INTO user_words VALUES ('kept', 1), ('=', 1)")
    migrate(used_app, "upgrade")
    assert rows(used_app, "SELECT word FROM user_words WHERE word = 'kept'") == [("kept",)]
    assert rows(used_app, "SELECT word FROM patient_words WHERE word = '= amina wanjiru'") == [("= amina wanjiru",)]


# --- Walls ---

# What `flask db check` does not see, and a table that batch mode makes anew may lose.
CHECKS = {
    "ck_absences_ends_after_start",
    "ck_absences_length",
    "ck_appointments_duration_minutes",
    "ck_appointments_overbooked_reason",
    "ck_appointments_status",
    "ck_clinic_one_row",
    "ck_moved_records_one_record",
    "ck_patients_discharged_after_admitted",
    "ck_patients_sex",
    "ck_patients_status",
    "ck_users_email_lower",
    "ck_users_role",
    "ck_working_hours_minutes",
    "ck_working_hours_weekday",
}
PARTIAL_INDEXES = {
    "ix_appointments_appointment_datetime_id",
    "ix_appointments_status_appointment_datetime_id",
    "ix_appointments_status_id",
    "ix_appointments_user_id_id",
    "ix_patients_admitted_at_id",
    "ix_patients_date_of_birth_id",
    "ix_patients_discharged_at",
    "ix_patients_last_name_first_name_id",
    "ix_patients_status_admitted_at_id",
    "ix_patients_status_id",
    "ix_patients_status_last_name_first_name_id",
    "ix_reports_created_at_id",
    "ix_reports_user_id_id",
    "ix_users_last_name_first_name_id",
}
EXPRESSION_INDEXES: set[str] = set()
WRITTEN = (
    "UPDATE OF appointment_datetime, duration_minutes, status, overbooked, patient_id, user_id, deleted_at "
    "ON appointments"
)
TRIGGERS = {
    "tr_absences_bookings_insert": "BEFORE INSERT ON absences",
    "tr_absences_bookings_update": "BEFORE UPDATE OF user_id, starts_at, ends_at, deleted_at ON absences",
    "tr_absences_overlap_insert": "BEFORE INSERT ON absences",
    "tr_absences_overlap_update": "BEFORE UPDATE OF user_id, starts_at, ends_at, deleted_at ON absences",
    "tr_absences_times_insert": "BEFORE INSERT ON absences",
    "tr_absences_times_update": "BEFORE UPDATE OF starts_at, ends_at ON absences",
    "tr_appointments_absence_insert": "BEFORE INSERT ON appointments",
    "tr_appointments_absence_update": f"BEFORE {WRITTEN}".replace("patient_id, ", ""),
    "tr_appointments_datetime_insert": "BEFORE INSERT ON appointments",
    "tr_appointments_datetime_update": "BEFORE UPDATE OF appointment_datetime ON appointments",
    "tr_appointments_doctor_slot_insert": "BEFORE INSERT ON appointments",
    "tr_appointments_doctor_slot_update": f"BEFORE {WRITTEN}",
    "tr_appointments_patient_slot_insert": "BEFORE INSERT ON appointments",
    "tr_appointments_patient_slot_update": f"BEFORE {WRITTEN}",
    "tr_hours_overlap_insert": "BEFORE INSERT ON working_hours",
    "tr_hours_overlap_update": "BEFORE UPDATE ON working_hours",
}
POSTGRESQL_TRIGGERS = {"tr_absences_bookings": "", "tr_appointments_absence": ""}
EXCLUSIONS = {
    f"ex_appointments_{side}_slot": f"EXCLUDE USING gist int4range {column}, {column}, '[]' WITH =, "
    "tsrange appointment_datetime AT TIME ZONE 'UTC', "
    "appointment_datetime AT TIME ZONE 'UTC' + duration_minutes * '00:01:00' WITH && "
    "WHERE deleted_at IS NULL AND NOT overbooked AND "
    "status = ANY ARRAY['pending', 'scheduled', 'confirmed', 'checked_in']"
    for side, column in (("doctor", "user_id"), ("patient", "patient_id"))
} | {
    "ex_absences_overlap": "EXCLUDE USING gist int4range user_id, user_id, '[]' WITH =, "
    "tstzrange starts_at, ends_at WITH && WHERE deleted_at IS NULL",
    "ex_working_hours_overlap": "EXCLUDE USING gist int4range user_id, user_id, '[]' WITH =, "
    "int4range weekday, weekday, '[]' WITH =, int4range starts, ends WITH &&",
}


def plain(definition: str) -> str:
    """Without casts and parentheses, which PostgreSQL's versions write differently."""
    bare = re.sub(r"::(text|interval|double precision|character varying)(\[\])?|[()]", " ", definition)
    return re.sub(" +(,|]|$)", r"\1", " ".join(bare.split()))


def walls(app: Flask) -> dict[str, Any]:
    """What stands in the database, in the words of the lists above."""
    if app.config["DATABASE_URL"].startswith("sqlite"):
        made = {
            name: (kind, " ".join(sql.split()))
            for kind, name, sql in rows(app, "SELECT type, name, sql FROM sqlite_master WHERE sql <> ''")
        }
        indexes = {name: sql for name, (kind, sql) in made.items() if kind == "index"}
        return {
            "checks": {name for _, sql in made.values() for name in re.findall(r"CONSTRAINT (ck_\w+) CHECK", sql)},
            "partial": {name for name, sql in indexes.items() if sql.endswith(" WHERE deleted_at IS NULL")},
            "expressions": {name for name, sql in indexes.items() if "(" in sql.partition("(")[2]},
            "triggers": {
                name: re.search("BEFORE .* ON \\w+", sql)[0] for name, (kind, sql) in made.items() if kind == "trigger"
            },  # type: ignore[index]
            "exclusions": {},
        }
    constraints = rows(app, "SELECT contype::text, conname, pg_get_constraintdef(oid) FROM pg_constraint")
    indexes = dict(rows(app, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"))
    expressions = rows(app, "SELECT indexrelid::regclass::text FROM pg_index WHERE indexprs IS NOT NULL")
    return {
        "checks": {name for kind, name, _ in constraints if kind == "c" and name.startswith("ck_")},
        "partial": {n for n, sql in indexes.items() if sql.endswith(" WHERE (deleted_at IS NULL)") and n[:3] != "ex_"},
        "expressions": {name for (name,) in expressions if not name.startswith("ex_")},
        "triggers": dict(rows(app, "SELECT tgname, '' FROM pg_trigger WHERE NOT tgisinternal")),
        "exclusions": {name: plain(sql) for kind, name, sql in constraints if kind == "x"},
    }


def all_walls(app: Flask) -> dict[str, Any]:
    sqlite = app.config["DATABASE_URL"].startswith("sqlite")
    return {
        "checks": CHECKS,
        "partial": PARTIAL_INDEXES,
        "expressions": EXPRESSION_INDEXES,
        "triggers": TRIGGERS if sqlite else POSTGRESQL_TRIGGERS,
        "exclusions": {} if sqlite else EXCLUSIONS,
    }


def test_the_migrations_put_up_every_wall(bare_app: Flask) -> None:
    migrate(bare_app, "upgrade")
    assert walls(bare_app) == all_walls(bare_app)


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
def test_every_table_that_keeps_its_ids_still_does_after_the_migrations(bare_app: Flask) -> None:
    migrate(bare_app, "upgrade")
    keeping = {name for name, table in db.metadata.tables.items() if table.dialect_options["sqlite"]["autoincrement"]}
    made = rows(bare_app, "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%'")
    assert {name for [name] in made} == keeping


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("erased", ["id = 2", "id > 0"])
def test_the_id_of_a_user_erased_before_the_upgrade_is_not_given_again(bare_app: Flask, erased: str) -> None:
    migrate(bare_app, "upgrade", "0011")
    names = "first_name, last_name, email, password, role, is_active, created_at, updated_at, version"
    values = "'A', 'B', '{}@clinic.test', 'x', 'doctor', 1, '2030-01-01', '2030-01-01', 1"
    for number in (1, 2):
        sql(bare_app, f"INSERT INTO users ({names}) VALUES ({values.format(number)})")
    sql(bare_app, f"DELETE FROM users WHERE {erased}")
    migrate(bare_app, "upgrade")
    sql(bare_app, f"INSERT INTO users ({names}) VALUES ({values.format(3)})")
    assert rows(bare_app, "SELECT max(id) FROM users") == [(3,)]


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
def test_the_triggers_of_slots_fill_no_table(bare_app: Flask) -> None:
    migrate(bare_app, "upgrade")
    slots = rows(bare_app, "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE '%_slot_%'")
    assert len(slots) == 4
    for [trigger] in slots:
        assert " IN (" not in trigger
        assert trigger.count("status = 'checked_in'") == 2


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
def test_a_wall_that_batch_mode_drops_is_missed(bare_app: Flask, tmp_path: Path) -> None:
    migrate(bare_app, "upgrade")
    more = with_one_more(
        tmp_path / "migrations",
        'with op.batch_alter_table("appointments", recreate="always") as table:',
        '    table.alter_column("reason", type_=sa.String(9), existing_type=sa.Text())',
    )
    migrate(bare_app, "upgrade", "--directory", more)
    assert {name for name in walls(bare_app)["triggers"] if name.startswith("tr_appointments")} == set()


ROW = "created_at, updated_at, version) VALUES ({}, '2030-01-01', '2030-01-01', 1)"


@pytest.mark.parametrize(
    "sql",
    [
        f"INSERT INTO reports (patient_id, user_id, diagnosis, {ROW.format('77, 77, $$')}".replace("$$", "''"),
        "DELETE FROM users",
        "UPDATE patients SET status = 'sleeping'",
        "UPDATE patients SET sex = 'f'",
        "UPDATE patients SET discharged_at = '2001-01-01', admitted_at = '2001-01-02'",
        "UPDATE users SET role = 'nurse'",
        "UPDATE users SET email = 'Ada@clinic.test'",
        "UPDATE users SET email = 'ada@clinic.test'",
        "UPDATE appointments SET duration_minutes = 4",
        "UPDATE appointments SET status = 'healed'",
        "UPDATE appointments SET patient_id = 77",
    ],
)
def test_what_must_always_be_true_is_held_by_the_database_itself(app: Flask, doctor: Client, sql: str) -> None:
    """Whoever writes: this goes past the application, on a connection such as it has."""
    patient = make_patient(doctor)
    doctor.post("/appointment", {"patient_id": patient["id"], "appointment_datetime": "2030-01-01T10:00"})
    engine_of(app).dispose()  # the next connection is new, as the application makes them
    with pytest.raises(IntegrityError), engine_of(app).begin() as connection:
        connection.exec_driver_sql(sql)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sqlite_keeps_what_it_has_acknowledged_and_lets_one_read_while_another_writes(app: Flask) -> None:
    engine_of(app).dispose()
    kept = {name: rows(app, f"PRAGMA {name}")[0][0] for name in ("synchronous", "journal_mode", "foreign_keys")}
    assert kept == {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1}


# --- env.py, on SQLite ---

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "later", "{head}", None, None


def upgrade() -> None:
{steps}


def downgrade() -> None:
    pass
"""


def with_one_more(folder: Path, *steps: str) -> str:
    """The folder of the migrations and one that does these steps."""
    shutil.copytree(MIGRATIONS, folder)
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    text = MIGRATION.format(head=head, steps="\n".join(f"    {step}" for step in steps))
    (folder / "versions" / "later.py").write_text(text)
    return str(folder)


@pytest.fixture
def used_app(own_app: Flask) -> Flask:
    """A clinic with a patient, who has an appointment."""
    sign_up(own_app, "Ada", "admin")
    ada = sign_in(own_app, "Ada")
    patient = make_patient(ada)
    booking = {"patient_id": patient["id"], "appointment_datetime": "2030-01-01T10:00"}
    assert ada.post("/appointment", booking).status_code == 201
    return own_app


def test_a_table_is_made_anew_without_losing_the_rows_that_refer_to_it(used_app: Flask, tmp_path: Path) -> None:
    more = with_one_more(
        tmp_path / "migrations",
        'with op.batch_alter_table("patients", recreate="auto") as table:',
        '    table.alter_column("phone_number", type_=sa.String(64), existing_type=sa.String(32))',
    )
    before = rows(used_app, "SELECT id, patient_id, user_id FROM appointments")
    migrate(used_app, "upgrade", "--directory", more)
    assert rows(used_app, "SELECT id, patient_id, user_id FROM appointments") == before
    assert len(rows(used_app, "SELECT id FROM patients")) == 1
    assert rows(used_app, "SELECT version_num FROM alembic_version") == [("later",)]


def test_a_migration_that_leaves_rows_without_their_parent_is_undone(used_app: Flask, tmp_path: Path) -> None:
    more = with_one_more(tmp_path / "migrations", """op.execute("DELETE FROM patients")""")
    before = rows(used_app, "SELECT version_num FROM alembic_version")
    result = used_app.test_cli_runner().invoke(args=["db", "upgrade", "--directory", more])
    assert result.exit_code != 0
    assert re.search("appointments", f"{result.output}{result.exception}")
    assert len(rows(used_app, "SELECT id FROM patients")) == 1
    assert rows(used_app, "SELECT version_num FROM alembic_version") == before


def test_foreign_keys_are_enforced_again_after_a_migration(used_app: Flask, tmp_path: Path) -> None:
    migrate(used_app, "upgrade", "--directory", with_one_more(tmp_path / "migrations", "pass"))
    with pytest.raises(IntegrityError):
        rows(used_app, "DELETE FROM patients")
