"""Kills the whole server with SIGKILL at random moments under a load of writes, and looks for lost writes.

    python bench/crash.py [--kills 20] [--seed 1]                 # on SQLite
    DATABASE_URL=postgresql://… python bench/crash.py             # on that server, in a database of its own

After each kill every acknowledged write must be in the database, and no half write. `flask audit verify` must find the
history whole. After `flask purge`, no image may lack its row and no row its image. Writes under way are then sent again
with their Idempotency-Key, and must be in the database once. Exit code 1 if anything of this fails.
"""

import argparse
import hashlib
import io
import random
import secrets
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import urllib3
from PIL import Image

from server import Answer, Server, server

WRITERS = 8


def scan() -> bytes:
    """Return a PNG of some 60 kB with random pixels."""
    file = io.BytesIO()
    Image.frombytes("RGB", (140, 140), secrets.token_bytes(140 * 140 * 3)).save(file, "PNG")
    return file.getvalue()


@dataclass
class Writer:
    """A client: the writes that were acknowledged to it, and the write under way."""

    at: Server
    number: int
    user_id: int
    token: str
    acknowledged: dict[str, set[str]] = field(default_factory=lambda: {"patients": set(), "appointments": set()})
    reports: dict[str, int] = field(default_factory=dict)  # mark: images
    written: int = 0
    patient: int = 0
    diagnosis: set[str] = field(default_factory=set)  # acknowledged or under way
    under_way: tuple[str, dict[str, Any]] | None = None
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Write until the server is gone."""
        try:
            while True:
                for write in (self.admit, self.diagnose, self.book, self.report):
                    write()
        except (urllib3.exceptions.HTTPError, ValueError):
            pass  # killed before the answer, or in the middle of it

    def send(self, method: str, path: str, due: int, **what: Any) -> Answer:
        self.under_way = (path, what) if method == "POST" else None
        answer = self.at.call(method, path, token=self.token, **what)
        self.under_way = None
        self.written += 1
        if answer.status != due:
            self.wrong.append(f"{method} {path}: {answer.status} {answer.body}")
        return answer

    def admit(self) -> None:
        mark = secrets.token_hex(8)
        body = {"first_name": "Amina", "last_name": mark, "phone_number": "0712345678"}
        made = self.send("POST", "/patients", 201, body=body, **{"Idempotency-Key": mark})
        self.acknowledged["patients"].add(mark)
        self.patient, self.diagnosis = made.body["id"], {""}

    def diagnose(self) -> None:
        tried = secrets.token_hex(8)
        self.diagnosis.add(tried)
        self.send("PATCH", f"/patient/{self.patient}", 200, body={"diagnosis": tried, "doctor_summary": tried})
        self.diagnosis = {tried}

    def book(self) -> None:
        mark = secrets.token_hex(8)
        start = datetime(2031, 1, 1, tzinfo=UTC) + timedelta(hours=self.written)
        body = {"patient_id": self.patient, "appointment_datetime": start.isoformat(), "reason": mark}
        self.send("POST", "/appointment", 201, body=body, **{"Idempotency-Key": mark})
        self.acknowledged["appointments"].add(mark)

    def report(self) -> None:
        mark, images = secrets.token_hex(8), [scan() for _ in range(1 + self.written % 3)]
        fields = [("patient_id", str(self.patient)), ("diagnosis", f"{mark} {len(images)}")]
        fields += [("images", (f"{n}.png", image)) for n, image in enumerate(images)]
        self.send("POST", "/reports", 201, fields=fields, **{"Idempotency-Key": mark})
        self.reports[mark] = len(images)

    def send_again(self) -> str:
        """The write that the kill left without an answer; its mark."""
        assert self.under_way
        path, what = self.under_way
        self.send("POST", path, 201, **what)
        return str(what["Idempotency-Key"])


def settle(at: Server) -> None:
    """PostgreSQL notices a little later that its clients are dead."""
    if at.engine.dialect.name == "sqlite":
        return
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    for _ in range(200):
        if not at.sql(others)[0][0]:
            return
        time.sleep(0.05)
    raise RuntimeError("PostgreSQL still serves the dead")


def faults(at: Server, writers: list[Writer]) -> list[str]:
    """Return a sentence for each lost write and each half write."""
    found = [text for writer in writers for text in writer.wrong]
    there = {
        "patients": {row[0] for row in at.sql("SELECT last_name FROM patients")},
        "appointments": {row[0] for row in at.sql("SELECT reason FROM appointments")},
    }
    for table, marks in there.items():
        for writer in writers:
            found += [f"lost: {table} {mark}" for mark in writer.acknowledged[table] - marks]
    images = dict(
        at.sql(
            "SELECT r.diagnosis, count(i.id) FROM reports r LEFT JOIN images i ON i.report_id = r.id GROUP BY r.id, 1"
        )
    )
    found += [
        f"half: report {name} has {count} images" for name, count in images.items() if not name.endswith(f" {count}")
    ]
    marks = {name.split()[0] for name in images}
    found += [f"lost: report {mark}" for writer in writers for mark in writer.reports.keys() - marks]
    for writer in writers:
        if writer.patient:
            diagnosis, summary = at.sql(
                "SELECT diagnosis, doctor_summary FROM patients WHERE id = :id", id=writer.patient
            )[0]
            if diagnosis not in writer.diagnosis:
                found.append(f"lost: the diagnosis of patient {writer.patient}")
            if diagnosis != summary:
                found.append(f"half: the change of patient {writer.patient}")
    return found


def store_faults(at: Server, folder: Path) -> list[str]:
    """Images without a row and rows without an image."""
    kept = {path.name: path for path in folder.rglob("*") if path.is_file()}
    rows = {row.image_url: row.sha256 for row in at.sql("SELECT image_url, sha256 FROM images")}
    ids = {name.partition(".")[0] for name in rows}  # an image may have a thumbnail
    found = [f"an image without a row: {name}" for name in kept if name.partition(".")[0] not in ids]
    for name, digest in rows.items():
        if name not in kept:
            found.append(f"a row without an image: {name}")
        elif hashlib.sha256(kept[name].read_bytes()).hexdigest() != digest:
            found.append(f"another image than was sent: {name}")
    return found


def swept(at: Server) -> list[str]:
    """As if an hour had gone by, and ten minutes for the keys of uploads."""
    at.sql("UPDATE uploads SET started_at = :at", at=at.past(timedelta(hours=2)))
    at.sql("UPDATE idempotency_keys SET claimed_at = :at WHERE record_id IS NULL", at=at.past(timedelta(minutes=11)))
    code, said = at.flask("purge")
    return [f"flask purge: {said}"] if code else []


def there_once(at: Server, marks: list[str]) -> list[str]:
    found = []
    for mark in marks:
        count = at.sql(
            "SELECT (SELECT count(*) FROM patients WHERE last_name = :mark)"
            " + (SELECT count(*) FROM appointments WHERE reason = :mark)"
            " + (SELECT count(*) FROM reports WHERE diagnosis LIKE :mark || ' %')",
            mark=mark,
        )[0][0]
        if count != 1:
            found.append(f"sent again and there {count} times: {mark}")
    return found


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    chance = random.Random(given.seed)
    found: list[str] = []
    again = orphans = 0
    with server() as at:
        folder = Path(at.environment["INSTANCE_PATH"]) / "images"
        at.sign_up("admin")
        writers = [Writer(at, number, *at.sign_up()) for number in range(WRITERS)]
        for _ in range(given.kills):
            threads = [threading.Thread(target=writer.run) for writer in writers]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.3, 1.5))
            at.kill()
            for thread in threads:
                thread.join()
            settle(at)
            found += faults(at, writers)
            before = len(list(folder.rglob("*.*")))
            found += swept(at)
            orphans += before - len(list(folder.rglob("*.*")))
            found += store_faults(at, folder)
            code, said = at.flask("audit", "verify")
            found += [f"flask audit verify: {said}"] if code else []
            at.start()
            marks = [writer.send_again() for writer in writers if writer.under_way]
            again += len(marks)
            found += there_once(at, marks)
            if found:
                break
        engine = at.engine.dialect.name
        written = sum(writer.written for writer in writers)
        entries = at.sql("SELECT count(*) FROM audit_entries")[0][0]
    print(*found[:20], sep="\n")
    print(
        f"{engine}: {given.kills} kills, {written} acknowledged writes, {entries} lines of history, {orphans} images"
        f" swept, {again} writes sent again: {len(found)} faults"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
