"""Restores a clinic to a moment: a base backup, the WAL archive and a copy of the images, with real processes.

    python bench/restore.py

It files reports with images, takes a base backup, files more, notes the moment, and then lets somebody archive every
patient by mistake. The database is restored to the moment, and the images from a copy that was made later. Every report
of before must be there with its image, nothing of the mistake may be, and the history must be whole and as old as the
head that was kept. Exit code 1 otherwise.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from clusters import NAME, Postgres, as_postgres, missing_tools, run, tool
from crash import scan

from server import Server


class Clinic:
    """A node on a PostgreSQL server, and what was filed there."""

    def __init__(self, node: Server) -> None:
        self.node, self.images = node, Path(node.environment["INSTANCE_PATH"]) / "images"
        node.start()
        _, self.token = node.sign_up("admin")

    def file_reports(self, count: int) -> None:
        for number in range(count):
            patient = {"first_name": "Amina", "last_name": f"No{number}", "phone_number": "0712 345 678"}
            made = self.node.call("POST", "/patients", patient, token=self.token)
            fields = [("patient_id", str(made.body["id"])), ("images", ("scan.png", scan()))]
            assert self.node.call("POST", "/reports", fields=fields, token=self.token).status == 201

    def archive_all(self) -> int:
        patients = self.node.call("GET", "/patients", token=self.token).body
        for patient in patients:
            assert self.node.call("DELETE", f"/patient/{patient['id']}", token=self.token).status == 200
        return len(patients)


def archive_wal(server: Postgres, folder: Path) -> None:
    """Have the server copy each finished piece of its log into the folder, as docs/operations.md sets it up."""
    with (server.data / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"archive_mode = on\narchive_command = 'cp %p {folder}/%f'\n")


def restore(backup: Path, wal: Path, moment: str, to: Path) -> Postgres:
    """Return a server with the base backup and all that was written up to the moment."""
    server = Postgres(to)
    run(*as_postgres("cp", "-a", backup, to))
    with (to / "postgresql.auto.conf").open("a") as settings:
        settings.write(
            f"archive_mode = off\nrestore_command = 'cp {wal}/%f %p'\nrecovery_target_time = '{moment}'\n"
            "recovery_target_action = 'promote'\n"
        )
    run(*as_postgres("touch", to / "recovery.signal"))
    server.start()
    while server.query("SELECT pg_is_in_recovery()")[0][0]:
        time.sleep(0.1)
    return server


def url_of(server: Postgres) -> str:
    return f"postgresql://postgres@127.0.0.1:{server.port}/{NAME}"


def play(given: argparse.Namespace, folder: Path, stack: ExitStack) -> int:
    backup, wal, kept = (folder / name for name in ("backup", "wal", "images-copy"))
    run(*as_postgres("mkdir", wal))
    old = Postgres(folder / "old")
    stack.callback(old.kill)
    old.make(synchronous=False)
    archive_wal(old, wal)
    old.start()
    old.query(f"CREATE DATABASE {NAME}")
    node = Server(url_of(old), str(folder / "instance"), WEB_CONCURRENCY="1")
    stack.callback(node.stop)
    clinic = Clinic(node)
    clinic.file_reports(given.reports)
    run(*as_postgres(tool("pg_basebackup"), "-D", backup, "-X", "stream", "-c", "fast", "-d", old.address))
    clinic.file_reports(given.reports)
    _, head = node.flask("audit", "head")
    moment = str(old.query("SELECT clock_timestamp()")[0][0])
    time.sleep(0.5)
    mistaken = clinic.archive_all()
    clinic.file_reports(3)
    shutil.copytree(clinic.images, kept)  # the images last: each that the database names is among them
    old.query("SELECT pg_switch_wal()")
    time.sleep(1)
    node.stop()
    old.kill()
    shutil.rmtree(clinic.images)

    began = time.monotonic()
    new = restore(backup, wal, moment, folder / "new")
    stack.callback(new.kill)
    shutil.copytree(kept, clinic.images)
    node.environment["DATABASE_URL"] = url_of(new)
    node.start()
    seconds = time.monotonic() - began
    patients = node.call("GET", "/patients", token=clinic.token).body
    reports = node.call("GET", "/reports", token=clinic.token).body
    checks = [
        node.flask("audit", "verify", "--head", head.strip().splitlines()[-1]),
        node.flask("images", "verify"),
    ]
    whole = len(patients) == len(reports) == 2 * given.reports and all(len(one["images"]) == 1 for one in reports)
    print(
        f"restored in {seconds:.1f} s: {len(reports)} of {2 * given.reports} reports, {len(patients)} patients, of "
        f"{mistaken} that were archived afterwards"
    )
    print("audit verify --head:", checks[0][1].strip())
    print("images verify:", checks[1][1].strip())
    return int(not whole or checks[0][0] != 0)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--reports", type=int, default=30, help="before the backup, and as many after it")
    given = options.parse_args()
    if missing := missing_tools():
        print(f"This needs {', '.join(missing)}: apt-get install postgresql")
        return 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, ExitStack() as stack:
        os.chmod(name, 0o777)  # the user postgres writes into it, too
        return play(given, Path(name), stack)


if __name__ == "__main__":
    sys.exit(main())
