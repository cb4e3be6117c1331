"""Edits rows of the history at random, as an attacker with the database but without AUDIT_KEY would.

    python bench/audit_edits.py [--edits 1000] [--seed 1]         # on SQLite
    DATABASE_URL=postgresql://… python bench/audit_edits.py       # on that server, in a database of its own

`flask audit verify` must find each edit and name its record. Each edit is then undone. Some edits leave no trace in the
database: removing the whole history of a purged record, or removing failed sign-ins and restoring the older head.
`flask audit verify --head` must find these. Exit code 1 if any edit is missed.
"""

import argparse
import io
import os
import random
import sys
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from flask import Flask  # noqa: E402
from PIL import Image  # noqa: E402
from sqlalchemy import Engine, delete, insert, select, update  # noqa: E402
from sqlalchemy.exc import IntegrityError  # noqa: E402

from app import create_app  # noqa: E402
from bench.server import database  # noqa: E402
from clinic.history import macs  # noqa: E402
from clinic.history.keys import audit_key  # noqa: E402
from models import AuditEntry, AuditHead  # noqa: E402
from server import logs  # noqa: E402

ENTRIES, HEADS = AuditEntry.__table__, AuditHead.__table__
Row = dict[str, Any]


def cli(app: Flask, *arguments: str) -> tuple[int, str]:
    result = app.test_cli_runner().invoke(args=arguments)
    return result.exit_code, result.output


class Person:
    """A user who signs up and in, and then sends requests."""

    def __init__(self, app: Flask, name: str, role: str) -> None:
        self.http = app.test_client()
        self.login = {"email": f"{name.lower()}@clinic.test", "password": "correct horse battery"}
        self.headers: dict[str, str] = {}
        self.send("POST", "/signup", json={"first_name": name, "last_name": "Otieno", "role": role, **self.login})
        token = self.send("POST", "/login", json=self.login)["access_token"]
        self.headers["Authorization"] = f"Bearer {token}"

    def send(self, method: str, path: str, **content: Any) -> Row:
        response = self.http.open(path, method=method, headers=self.headers, **content)
        return dict(response.get_json())

    def mistype(self) -> None:
        """Try to sign in with a wrong password."""
        self.http.post("/login", json={**self.login, "password": "a wrong one"})


def picture(format: str = "PNG") -> tuple[io.BytesIO, str]:
    """Return a file for a form."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "navy").save(file, format)
    file.seek(0)
    return file, f"scan.{format.lower()}"


def live_a_little(app: Flask) -> None:
    """Make records of every kind, and change, archive, restore and purge some."""
    admin, dora, otto = Person(app, "Ada", "admin"), Person(app, "Dora", "doctor"), Person(app, "Otto", "doctor")
    doctors = [dora, otto, dora]
    dora.mistype()
    for n in range(9):
        doctor = doctors[n % 3]
        amina = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "+254 712 345 678"}
        patient = doctor.send("POST", "/patients", json=amina)["id"]
        for word in ("Malaria", "Malaria, cured")[: n % 3]:
            doctor.send("PATCH", f"/patient/{patient}", json={"diagnosis": word})
        booking = {"patient_id": patient, "appointment_datetime": f"2030-03-01T{10 + n}:00"}
        appointment = doctor.send("POST", "/appointment", json=booking)["id"]
        doctor.send("PATCH", f"/appointment/{appointment}", json={"status": "confirmed"})
        form = {"patient_id": patient, "images": [picture(), picture("JPEG")]}
        report = doctor.send("POST", "/reports", data=form)["id"]
        doctor.send("PATCH", f"/reports/{report}", data={"images": [picture()], "replace_images": "true"})
        if n % 3 == 0:
            admin.send("DELETE", f"/patient/{patient}")
        if n == 3:
            admin.send("POST", f"/patient/{patient}/restore")
    admin.send("DELETE", "/user/3")  # refused: the user has appointments to come
    assert cli(app, "purge", "--older-than", "0h")[0] == 0
    dora.mistype()
    otto.mistype()


class Attacker:
    """Edits rows at random, and can undo the edits."""

    def __init__(self, app: Flask, engine: Engine, seed: int) -> None:
        self.app, self.engine, self.chance = app, engine, random.Random(seed)
        self.entries, self.heads = self._read()
        code, said = cli(app, "audit", "head")
        assert code == 0, said  # it waits for long transactions, also those of other databases of the server
        self.head_kept_elsewhere = said.strip()

    def _read(self) -> tuple[list[Row], list[Row]]:
        with self.engine.connect() as connection:
            entries = connection.execute(select(ENTRIES).order_by(ENTRIES.c.id)).mappings()
            return [dict(row) for row in entries], [dict(row) for row in connection.execute(select(HEADS)).mappings()]

    def chain(self, of: Row) -> list[Row]:
        return [row for row in self.entries if (row["kind"], row["record_id"]) == (of["kind"], of["record_id"])]

    def other(self, column: str, value: Any) -> Any:
        """Return another value that this column may have."""
        if column == "at":
            return value + timedelta(microseconds=self.chance.choice((-1, 1, 60_000_000)))
        if column == "id":
            return self.entries[-1]["id"] + self.chance.randrange(1, 1000)
        if column in ("seq", "record_id", "version", "actor_id", "spelling", "key_number"):
            return self.chance.choice([n for n in range(1000, 1020) if n != value])
        if column == "kind":
            return self.chance.choice([kind for kind in ("patient", "report", "unheard of") if kind != value])
        if column in ("changes", "request_id") and value is not None:
            return self.chance.choice((None, value[:-1], value.replace("a", "b") + " "))
        if column == "action":
            return "archive" if value != "archive" else "change"
        return value[::-1] if value else "0" * 64

    def change_an_entry(self) -> list[Row]:
        row = self.chance.choice(self.entries)
        column = self.chance.choice([c.name for c in ENTRIES.columns])
        if column == "changes" and row["changes"] is None:
            new: Any = "{}"
        else:
            new = self.other(column, row[column])
        self._write(update(ENTRIES).where(ENTRIES.c.id == row["id"]).values({column: new}))
        return [row]

    def change_a_head(self) -> list[Row]:
        row = self.chance.choice(self.heads)
        column = self.chance.choice([c.name for c in HEADS.columns])
        self._write(self._head(update(HEADS), row).values({column: self.other(column, row[column])}))
        return [row]

    def delete_an_entry(self) -> list[Row]:
        row = self.chance.choice(self.entries)
        self._write(delete(ENTRIES).where(ENTRIES.c.id == row["id"]))
        return [row]

    def delete_a_head(self) -> list[Row]:
        row = self.chance.choice(self.heads)
        self._write(self._head(delete(HEADS), row))
        return [row]

    def swap_two(self) -> list[Row]:
        """All that two entries say, or only their places."""
        one, other = self.chance.sample(self.entries, 2)
        if self.chance.random() < 0.5:
            one, other = self.chance.choice(
                [(a, b) for a in self.entries for b in self.chain(a) if a["seq"] < b["seq"]]
            )
        kept = {"id", "seq", "kind", "record_id"} if self.chance.random() < 0.5 else {"kind", "record_id", "seq"}
        self._write(delete(ENTRIES).where(ENTRIES.c.id.in_([one["id"], other["id"]])))
        swapped = [
            {name: (here if name in kept else there)[name] for name in here}
            for here, there in ((one, other), (other, one))
        ]
        self._write(insert(ENTRIES), swapped)
        return [one, other]

    def cut_off_a_tail(self) -> list[Row]:
        chain = self.chain(self.chance.choice(self.entries))
        rest = self.chance.randrange(len(chain))
        self._write(delete(ENTRIES).where(ENTRIES.c.id.in_([row["id"] for row in chain[rest:]])))
        if rest and self.chance.random() < 0.5:
            self._put_back_head(chain[rest - 1])
        return [chain[0]]

    def take_out_a_record(self) -> list[Row]:
        head = self.chance.choice([row for row in self.heads if row["seq"]])  # others have no entry
        self._write(delete(ENTRIES).where(ENTRIES.c.id.in_([row["id"] for row in self.chain(head)])))
        if self.chance.random() < 0.5:
            self._write(self._head(delete(HEADS), head))
        return [head]

    def forge_an_entry(self) -> list[Row]:
        newest = self.chain(self.chance.choice(self.entries))[-1]
        forged = {**newest, "id": self.entries[-1]["id"] + 1, "seq": newest["seq"] + 1}
        self._write(insert(ENTRIES), [forged])
        if self.chance.random() < 0.5:
            head = next(h for h in self.heads if (h["kind"], h["record_id"]) == (newest["kind"], newest["record_id"]))
            self._write(self._head(update(HEADS), head).values(seq=forged["seq"], entry_mac=forged["mac"]))
        return [newest]

    def blank_values(self) -> list[Row]:
        row = self.chance.choice([row for row in self.entries if row["changes"] is not None])
        self._write(update(ENTRIES).where(ENTRIES.c.id == row["id"]).values(changes=None))
        return [row]

    def edit(self) -> tuple[str, list[Row]]:
        """What was done, and to which chains."""
        edits = (
            self.change_an_entry,
            self.change_an_entry,
            self.change_a_head,
            self.delete_an_entry,
            self.delete_a_head,
            self.swap_two,
            self.cut_off_a_tail,
            self.take_out_a_record,
            self.forge_an_entry,
            self.blank_values,
        )
        while True:
            chosen = self.chance.choice(edits)
            try:
                return chosen.__name__.replace("_", " "), chosen()
            except IntegrityError:  # a duplicate key, which the database refuses
                self.undo()

    def _put_back_head(self, newest: Row) -> None:
        """Restore the head of the time when this entry was the newest, as from an old copy of the database."""
        key, chain = audit_key(), (newest["kind"], newest["record_id"])
        mac = macs.of_head(key, chain, newest["seq"], newest["mac"])
        old = {"seq": newest["seq"], "entry_mac": newest["mac"], "mac": mac}
        self._write(self._head(update(HEADS), newest).values(old))

    @staticmethod
    def _head(statement: Any, of: Row) -> Any:
        return statement.where(HEADS.c.kind == of["kind"], HEADS.c.record_id == of["record_id"])

    def _write(self, statement: Any, *rows: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement, *rows)

    def undo(self) -> None:
        entries, heads = self._read()
        with self.engine.begin() as connection:
            for table, right, now in ((ENTRIES, self.entries, entries), (HEADS, self.heads, heads)):
                keys = [column.name for column in table.primary_key]
                for row in now:
                    if row not in right:
                        connection.execute(delete(table).where(*(table.c[name] == row[name] for name in keys)))
                if missing := [row for row in right if row not in now]:
                    connection.execute(insert(table), missing)

    def finds(self, touched: list[Row], *options: str) -> bool:
        code, said = cli(self.app, "audit", "verify", *options)
        names = ["sign-ins" if row["kind"] == "sign-in" else f"{row['kind']} {row['record_id']}" for row in touched]
        named = any(f"{name}: " in said for name in names)
        by_head = "is not the one" in said or "is older than this head" in said
        return code == 1 and (named or ("--head" in options and by_head))


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--edits", type=int, default=1000)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    logs.set_up("ERROR", stream=open(os.devnull, "w"))  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder, database(folder) as url:
        settings = {"FLASK_ENV": "testing", "DATABASE_URL": url, "INSTANCE_PATH": Path(folder), "SIGNUP": "open"}
        app = create_app({**settings, "BCRYPT_LOG_ROUNDS": 4, "RATELIMIT_ENABLED": False})
        assert cli(app, "db", "upgrade")[0] == 0
        live_a_little(app)
        missed, found, by_head = Counter[str](), 0, 0
        with app.app_context():
            engine = app.extensions["sqlalchemy"].engine
            attacker = Attacker(app, engine, given.seed)
            assert cli(app, "audit", "verify")[0] == 0
            for _ in range(given.edits):
                what, touched = attacker.edit()
                if attacker.finds(touched):
                    found += 1
                elif leaves_no_trace(what, touched, attacker) and attacker.finds(
                    touched, "--head", attacker.head_kept_elsewhere
                ):
                    by_head += 1
                else:
                    missed[what] += 1
                attacker.undo()
            assert cli(app, "audit", "verify")[0] == 0
            engine.dispose()
            name, rows = engine.dialect.name, len(attacker.entries)
    print(f"{name}: {given.edits} edits of {rows} entries and their heads, seed {given.seed}: {found} found by verify,")
    print(f"{by_head} without a trace found by verify --head, {sum(missed.values())} missed", *missed.items())
    return int(bool(missed))


def leaves_no_trace(what: str, touched: list[Row], attacker: Attacker) -> bool:
    chain = attacker.chain(touched[0])
    if what == "take out a record":
        return chain[-1]["action"] == "purge"
    return what == "cut off a tail" and (chain[-1]["action"] == "purge" or chain[0]["kind"] == "sign-in")


if __name__ == "__main__":
    sys.exit(main())
