"""Fills large tables by SQL, with the words that clinic/search.py would index, and their history by our own code."""

from typing import cast

from sqlalchemy import Connection, Engine, Table, select

from clinic.history import chain
from models import AuditHead

SYLLABLES = ("ka", "mo", "ri", "na", "te", "wa", "li", "so", "bu", "ja")
FIRST = [a + b for a in SYLLABLES for b in SYLLABLES]  # 100
LAST = [a + b + c for a in reversed(SYLLABLES) for b in SYLLABLES for c in SYLLABLES]  # 1,000
RARE = "quixote"  # a hundred patients, however large the table
MINUTES = 30
HISTORY_BATCH = 5_000  # entries that are written together


def _numbers(connection: Connection, first: int, last: int) -> str:
    if connection.dialect.name == "sqlite":
        more = f"SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last}"
        return f"(WITH RECURSIVE n(i) AS ({more}) SELECT i FROM n)"
    return f"(SELECT i FROM generate_series({first}, {last}) AS i)"


def _time(connection: Connection, minutes: str, first_day: str = "2020-01-01") -> str:
    if connection.dialect.name == "sqlite":
        return f"strftime('%Y-%m-%d %H:%M:%S.000000', '{first_day}', '+' || ({minutes}) || ' minutes')"
    return f"TIMESTAMPTZ '{first_day}Z' + ({minutes}) * INTERVAL '1 minute'"


def _birth_date(connection: Connection, number: str) -> str:
    """Return SQL for a birth date, which some thirty patients of a million share, of other names."""
    if connection.dialect.name == "sqlite":
        return f"date('1930-01-01', '+' || ({number} % 31991) || ' days')"
    return f"DATE '1930-01-01' + {number} % 31991"


def _without_indexes(connection: Connection, table: str) -> list[str]:
    """Drop the table's indexes and triggers, and return the SQL to make them again.

    Building an index over all rows is faster than inserting each row into it. The rows are known to be valid.
    """
    if connection.dialect.name == "sqlite":
        query = (
            f"SELECT type, name, sql FROM sqlite_master WHERE tbl_name = '{table}' AND type <> 'table' AND sql <> ''"
        )
    else:
        ours = f"tablename = '{table}' AND starts_with(indexname, 'ix_')"
        query = f"SELECT 'index', indexname, indexdef FROM pg_indexes WHERE {ours}"
    found = connection.exec_driver_sql(query).all()
    for kind, name, _ in found:
        connection.exec_driver_sql(f"DROP {kind} {name}")
    return [definition for *_, definition in found]


def _insert(connection: Connection, table: str, columns: str, select: str) -> None:
    indexes = _without_indexes(connection, table)
    triggers = f"ALTER TABLE {table} {{}} TRIGGER USER"
    if connection.dialect.name == "postgresql":  # a trigger locks the doctor of each appointment
        connection.exec_driver_sql(triggers.format("DISABLE"))
    connection.exec_driver_sql(f"INSERT INTO {table} ({columns}) {select}")
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(triggers.format("ENABLE"))
    for definition in indexes:
        connection.exec_driver_sql(definition)


def fill(
    engine: Engine,
    patients: int = 0,
    appointments: int = 0,
    reports: int = 0,
    doctors: int = 50,
    first_day: str = "2020-01-01",
    every: int = MINUTES,
) -> None:
    """Add this many rows to each table, doctors first.

    The appointments of a doctor begin on the first day, one `every` so many minutes.
    """
    with engine.connect().execution_options(no_parameters=True) as connection, connection.begin():
        sqlite = connection.dialect.name == "sqlite"
        true, at = ("1", "i") if sqlite else ("TRUE", "i")
        kept = "created_at, updated_at, version"
        made = f"{_time(connection, at)}, {_time(connection, at)}, 1"
        connection.exec_driver_sql("CREATE TEMPORARY TABLE first_names (n INTEGER PRIMARY KEY, name TEXT)")
        connection.exec_driver_sql("CREATE TEMPORARY TABLE last_names (n INTEGER PRIMARY KEY, name TEXT)")
        for table, names in (("first_names", FIRST), ("last_names", LAST)):
            values = ", ".join(f"({n}, '{name}')" for n, name in enumerate(names))
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES {values}")
        capital = "upper(substr({0}, 1, 1)) || substr({0}, 2)"
        start = connection.exec_driver_sql("SELECT coalesce(max(id), 0) FROM users").scalar_one()
        connection.exec_driver_sql(
            f"INSERT INTO users (first_name, last_name, email, password, role, is_active, {kept}) "
            f"SELECT 'Doctor', 'No' || i, 'doctor' || i || '@clinic.test', 'x', 'doctor', {true}, {made} "
            f"FROM {_numbers(connection, 1, doctors)} AS n"
        )
        if patients:
            last = f"CASE WHEN i <= 100 THEN '{RARE.capitalize()}' ELSE {capital.format('l.name')} END"
            admitted = f"CASE WHEN i % 10 = 0 THEN NULL ELSE {_time(connection, 'i % 500000')} END"
            _insert(
                connection,
                "patients",
                f"mrn, first_name, last_name, phone_number, status, doctor_summary, diagnosis, admitted_at, {kept}, "
                "date_of_birth, sex",
                f"SELECT CAST(1000000000 + i AS TEXT), {capital.format('f.name')}, {last}, "
                "'+2547' || CAST(10000000 + i AS TEXT), CASE i % 3 WHEN 0 THEN 'admitted' WHEN 1 THEN 'outpatient' "
                f"ELSE 'discharged' END, 'Stable; review of the X-ray tomorrow', 'Malaria', {admitted}, {made}, "
                f"{_birth_date(connection, 'i')}, 'female' "
                f"FROM {_numbers(connection, 1, patients)} AS n "
                f"JOIN first_names f ON f.n = i % {len(FIRST)} JOIN last_names l ON l.n = i % {len(LAST)}",
            )
            if sqlite:
                connection.connection.driver_connection.create_function("reverse", 1, lambda text: text[::-1])  # type: ignore[union-attr]
            digits, national = "substr(phone_number, 2)", "'0' || substr(phone_number, 5)"
            names = "lower(min(first_name, last_name)) || ' ' || lower(max(first_name, last_name))"
            if not sqlite:  # in the order of code points, as Python sorts
                pair = 'lower(first_name) COLLATE "C", lower(last_name) COLLATE "C"'
                names = f"least({pair}) || ' ' || greatest({pair})"
            _insert(
                connection,
                "patient_words",
                "word, record_id",
                "SELECT lower(first_name) AS word, id FROM patients UNION SELECT lower(last_name), id FROM patients "
                f"UNION ALL SELECT mrn, id FROM patients UNION ALL SELECT {digits}, id FROM patients "
                f"UNION ALL SELECT {national}, id FROM patients "
                f"UNION ALL SELECT '=' || date_of_birth || ' ' || {names}, id FROM patients "
                f"UNION ALL SELECT '<' || reverse({digits}), id FROM patients ORDER BY 1, 2",
            )
        if appointments:
            # by default each doctor is busy from morning to morning; no patient is at two places
            _insert(
                connection,
                "appointments",
                f"appointment_datetime, duration_minutes, status, reason, overbooked, patient_id, user_id, {kept}",
                f"SELECT {_time(connection, f'(i / {doctors}) * {every}', first_day)}, {MINUTES}, 'scheduled', "
                "'Control', "
                f"{'0' if sqlite else 'FALSE'}, i % {max(patients, 1)} + 1, {start} + i % {doctors} + 1, {made} "
                f"FROM {_numbers(connection, 1, appointments)} AS n",
            )
        if reports:
            _insert(
                connection,
                "reports",
                f"diagnosis, patient_id, user_id, {kept}",
                f"SELECT 'Fracture', i % {patients} + 1, {start} + i % {doctors} + 1, {made} "
                f"FROM {_numbers(connection, 1, reports)} AS n",
            )
            _insert(
                connection,
                "images",
                f"report_id, image_url, public_id, format, width, height, bytes, sha256, {kept}",
                "SELECT r.id, 'a4e98c418327c52a02dc4168f4406fb81' || (r.id * 3 + k.i) || '.png', "
                "'a' || (r.id * 3 + k.i), "
                "'png', 640, 480, 54321, 'x', r.created_at, r.created_at, 1 "
                f"FROM reports r CROSS JOIN {_numbers(connection, 1, 3)} AS k",
            )
        connection.exec_driver_sql("DROP TABLE first_names")
        connection.exec_driver_sql("DROP TABLE last_names")
    _vacuum(engine)


def fill_history(engine: Engine) -> int:
    """Write an entry "create" for every record that has no history yet. Return how many.

    Needs a context of the application, for its `AUDIT_KEY`.
    """
    heads, count = cast(Table, AuditHead.__table__).c, 0
    reading = engine.connect().execution_options(reading=True)
    with engine.connect() as connection, reading as rows:
        indexes = _without_indexes(connection, "audit_entries")
        for noun, kind in chain.KINDS.items():
            table = cast(Table, kind.__table__)
            its_head = (heads.kind == noun) & (heads.record_id == table.c.id)
            unwritten = select(table).where(~select(heads.seq).where(its_head).exists())
            found = rows.execute(unwritten.execution_options(yield_per=HISTORY_BATCH))
            for batch in found.mappings().partitions():
                chain.write(connection, [chain.created(kind, row) for row in batch], heads={})
                count += len(batch)
        for definition in indexes:
            connection.exec_driver_sql(definition)
        connection.commit()
    _vacuum(engine)
    return count


def _vacuum(engine: Engine) -> None:
    """Do what PostgreSQL's autovacuum does in time. Nobody does it for SQLite."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT", single=True) as connection:
            connection.connection.driver_connection.cursor().execute("VACUUM ANALYZE")  # type: ignore[union-attr]
