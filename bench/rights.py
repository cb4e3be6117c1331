"""Four writers against one loss of rights: nobody writes after their demotion, deactivation, archive or logout.

    python bench/rights.py [--rounds 50]                          # on SQLite
    DATABASE_URL=postgresql://… python bench/rights.py            # on that server, in a database of its own

Against the real server with two workers. In each round a second administrator repeats a request from four threads while
the first one takes their rights. A win is a request that takes effect after the loss was answered. Then twenty bookings
of one doctor at once, ten times. Exit code 1 if there is a win, an answer 5xx or, on PostgreSQL, a deadlock.
"""

import argparse
import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from races import deadlocks

from server import ROOT, Server, server

Loss = Callable[[int, str], int]
Write = Callable[[int, str], int]


class Sibling(NamedTuple):
    """A kind of race: the write, the loss, and the SQL that tells a win; "" for a record written after the loss."""

    name: str
    write: Write
    loss: Loss
    wins: str


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "navy").save(file, "PNG")
    return file.getvalue()


class Clinic:
    def __init__(self, at: Server) -> None:
        self.at = at
        self.admin, self.token = at.sign_up("admin")
        person = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
        self.patient_in = person
        self.patient = int(at.call("POST", "/patients", person, self.token).body["id"])
        self.report = 0

    def change(self, user: int, **fields: Any) -> int:
        return self.at.call("PATCH", f"/user/{user}", fields, self.token).status

    def second_admin(self) -> tuple[int, str]:
        user, token = self.at.sign_up()
        assert self.change(user, role="admin") == 200
        return user, token

    def sign_up_by(self, _: int, token: str) -> int:
        email = f"made-{time.monotonic_ns()}-{threading.get_ident()}@clinic.test"
        body = {"first_name": "New", "last_name": "Admin", "email": email, "password": "correct horse battery"}
        return self.at.call("POST", "/signup", {**body, "role": "admin"}, token).status

    def add_image(self, _: int, token: str) -> int:
        fields = {"images": ("a.png", picture(), "image/png")}
        return self.at.call("PATCH", f"/reports/{self.report}", token=token, fields=fields).status

    def siblings(self) -> list[Sibling]:
        call = self.at.call
        is_admin = "SELECT count(*) FROM users WHERE id = :user AND role = 'admin'"
        is_active = "SELECT count(*) FROM users WHERE id = :user AND is_active"
        is_live = "SELECT count(*) FROM users WHERE id = :user AND deleted_at IS NULL"
        return [
            Sibling(
                "role admin against a demotion",
                lambda user, token: call("PATCH", f"/user/{user}", {"role": "admin"}, token).status,
                lambda user, _: self.change(user, role="doctor"),
                is_admin,
            ),
            Sibling(
                "is_active against a deactivation",
                lambda user, token: call("PATCH", f"/user/{user}", {"is_active": True}, token).status,
                lambda user, _: self.change(user, is_active=False),
                is_active,
            ),
            Sibling(
                "restore against an archive",
                lambda user, token: call("POST", f"/user/{user}/restore", token=token).status,
                lambda user, _: call("DELETE", f"/user/{user}", token=self.token).status,
                is_live,
            ),
            Sibling(
                "sign-up of an admin against a deactivation",
                self.sign_up_by,
                lambda user, _: self.change(user, is_active=False),
                "",
            ),
            Sibling(
                "an image against a deactivation",
                self.add_image,
                lambda user, _: self.change(user, is_active=False),
                "",
            ),
            Sibling(
                "a patient against a logout",
                lambda _, token: call("POST", "/patients", self.patient_in, token).status,
                lambda _, token: call("POST", "/logout", token=token).status,
                "",
            ),
        ]

    def race(self, sibling: Sibling) -> tuple[int, Counter[int]]:
        """Run one round; return the wins and how often each status was answered."""
        user, token = self.second_admin()
        answers: Counter[int] = Counter()
        lost = threading.Event()

        def repeat() -> None:
            while not lost.is_set():
                answers[sibling.write(user, token)] += 1
            answers[sibling.write(user, token)] += 1

        writers = [threading.Thread(target=repeat) for _ in range(4)]
        for writer in writers:
            writer.start()
        time.sleep(0.05)
        while (status := sibling.loss(user, token)) == 409:  # the writers were faster at this moment
            pass
        before = self.written_by(user)
        lost.set()
        for writer in writers:
            writer.join()
        assert status == 200, (sibling.name, status)
        won = self.at.sql(sibling.wins, user=user)[0][0] if sibling.wins else self.written_by(user) - before
        return int(won), answers

    def written_by(self, user: int) -> int:
        """Return how many changes of records the history has of this user."""
        written = "SELECT count(*) FROM audit_entries WHERE actor_id = :user AND kind <> 'sign-in'"
        return int(self.at.sql(written, user=user)[0][0])

    def file_report(self) -> None:
        fields = {"patient_id": str(self.patient), "images": ("a.png", picture(), "image/png")}
        self.report = int(self.at.call("POST", "/reports", token=self.token, fields=fields).body["id"])

    def book_twenty(self, number: int) -> Counter[int]:
        """Book twenty slots of one doctor at once, half of them the same slot."""
        start = datetime(2031, 1, 1, 8, tzinfo=UTC) + timedelta(days=number)
        statuses: list[int] = []

        def book(slot: int) -> None:
            at = (start + timedelta(minutes=30 * (slot // 2))).isoformat()
            body = {"patient_id": self.patient, "user_id": self.admin, "appointment_datetime": at}
            statuses.append(self.at.call("POST", "/appointment", body, self.token).status)

        threads = [threading.Thread(target=book, args=(slot,)) for slot in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Counter(statuses)


def main(rounds: int, root: Path) -> int:
    faults = 0
    with server(root=root) as at:
        clinic = Clinic(at)
        clinic.file_report()
        for sibling in clinic.siblings():
            wins, answers = 0, Counter[int]()
            for _ in range(rounds):
                won, answered = clinic.race(sibling)
                wins += bool(won)
                answers += answered
            broken = sum(count for status, count in answers.items() if status >= 500)
            faults += wins + broken
            print(f"{sibling.name}: {wins} wins in {rounds} rounds, answers {dict(sorted(answers.items()))}")
        booked: Counter[int] = Counter()
        before = deadlocks(at)
        for number in range(10):
            booked += clinic.book_twenty(number)
        deadly = deadlocks(at) - before  # the server tries again, so no answer tells of them
        faults += booked.keys() != {201, 409} or booked[201] != 100 or deadly > 0
        print(f"20 bookings of one doctor at once, 10 rounds: {dict(sorted(booked.items()))}, {deadly} deadlocks")
    return int(faults > 0)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=50)
    options.add_argument("--root", type=Path, default=ROOT, help="the checkout whose code is served")
    sys.exit(main(**vars(options.parse_args())))
