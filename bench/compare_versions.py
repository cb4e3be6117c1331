"""Sends the same requests to an old and a new version, and compares their answers.

    python bench/compare_versions.py OLD [NEW]       # two checkouts of the project; NEW is this checkout by default

Each version serves its own empty database, on SQLite and on PostgreSQL. The requests are a day at the clinic as in the
Postman collection, every other route, and requests that are refused. Status, headers and body must be equal byte for
byte. Masks hide times of the run, tokens, request ids, MRNs, and the links and public ids of images. Prints each
difference, then the sentences of error bodies that changed.

Then the old version seeds and uses a database. The new version upgrades it, verifies its history against the old head,
and accepts the old tokens and links. Exit code 1 if anything differs or fails; `--sentences-may-differ` allows other
sentences.
"""

import argparse
import difflib
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from bench.server import Server  # noqa: E402
from testing.postgresql import empty_database, postgresql_server  # noqa: E402

PASSWORD = "three green herons"
SECRETS = {"SECRET_KEY": "s" * 32, "JWT_SECRET_KEY": "j" * 32, "AUDIT_KEY": "a" * 32}
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?([+-]\d\d:\d\d|Z)")
MASKS = (
    (re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+"), "<token>"),
    (re.compile(r'/media/[^"\s]+'), "/media/<link>"),
    (re.compile(r'"\d{10}"'), '"<mrn>"'),
    (re.compile(r'"[0-9a-f]{40}"'), '"<public id>"'),
    (re.compile(r'("request_id": ?)"[^"]+"'), r'\1"<request>"'),
    (re.compile(r"(cursor=)[\w%-]+"), r"\1<cursor>"),
    (re.compile(r"127\.0\.0\.1:\d+"), "<host>"),
)
MASKED_HEADERS = {"date": "<date>", "x-request-id": "<request>", "content-length": "<length>", "retry-after": "<wait>"}


def masked(text: str, started: datetime) -> str:
    """The text without what differs between two runs. Times that a request sent stay; times of the run do not."""

    def mask(match: re.Match[str]) -> str:
        instant = datetime.fromisoformat(match[0])
        return "<now>" if abs(instant - started) < timedelta(hours=1) else match[0]

    text = INSTANT.sub(mask, text)
    for pattern, replacement in MASKS:
        text = pattern.sub(replacement, text)
    return text


@dataclass
class Exchange:
    """A request and its answer, masked."""

    name: str
    status: int
    headers: dict[str, str]
    body: str

    def lines(self) -> list[str]:
        try:
            body = json.dumps(json.loads(self.body), indent=1, ensure_ascii=False)
        except ValueError:
            body = self.body
        return [str(self.status), *(f"{name}: {value}" for name, value in self.headers.items()), *body.splitlines()]


def scan(format: str = "PNG", colour: str = "navy") -> tuple[str, bytes, str]:
    """A picture for a form."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, format)
    return f"scan.{format.lower()}", file.getvalue(), f"image/{format.lower()}"


@dataclass
class Visitor:
    """Sends requests to a version and keeps its answers."""

    server: Server
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    exchanges: list[Exchange] = field(default_factory=list)
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)

    def send(self, who: str, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """Send a request as this person, or as nobody if `who` is "". Return the answer's JSON, {} without any.

        `more` is `form` (fields of multipart/form-data), `raw` (a body as it is) or headers.
        """
        headers = {name.replace("_", "-"): value for name, value in more.items() if name not in ("form", "raw")}
        if who:
            headers.setdefault("Authorization", f"Bearer {self.tokens[who]['access_token']}")
        content: dict[str, Any] = {"fields": more["form"]} if "form" in more else {}
        if body is not None or "raw" in more:
            content["body"] = more["raw"] if "raw" in more else json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        url = path if path.startswith("http") else f"http://127.0.0.1:{self.server.port}{path}"
        answer = self.server.http.request(method, url, headers=headers, **content)
        told = {
            name.lower(): MASKED_HEADERS.get(name.lower()) or masked(value, self.started)
            for name, value in sorted(answer.headers.items())
        }
        length = answer.headers.get("Content-Length")
        assert length is None or method == "HEAD" or int(length) == len(answer.data), path
        text = answer.data.decode("utf-8", "backslashreplace")
        name = f"{len(self.exchanges) + 1}. {who or 'nobody'} {method} {masked(path, self.started)}"
        self.exchanges.append(Exchange(name, answer.status, told, masked(text, self.started)))
        try:
            return json.loads(answer.data)
        except ValueError:
            return {}

    def sign_in(self, who: str, password: str = PASSWORD) -> None:
        self.tokens[who] = self.send("", "POST", "/login", {"email": f"{who}@clinic.example", "password": password})

    def sign_up(self, who: str, role: str, by: str = "") -> int:
        person = {"first_name": who.title(), "last_name": "Okafor", "email": f"{who}@clinic.example", "role": role}
        return int(self.send(by, "POST", "/signup", {**person, "password": PASSWORD})["id"])


AMINA = {
    "first_name": "Amina",
    "last_name": "Wanjiru",
    "phone_number": "+254 712 345 678",
    "status": "admitted",
    "doctor_summary": "Fever for three days, no cough.",
    "diagnosis": "Malaria",
    "admitted_at": "2026-03-01T08:30:00+00:00",
    "date_of_birth": "1990-05-31",
    "sex": "female",
}
SLOT = "2030-03-04T10:00:00+00:00"


def day_at_the_clinic(v: Visitor) -> None:
    """The Postman collection's story."""
    v.send("", "GET", "/readyz")
    v.sign_up("ada", "admin")
    v.sign_in("ada")
    v.sign_up("tomas", "doctor")
    v.sign_in("tomas")
    v.send("tomas", "GET", "/me")
    patient = f"/patient/{v.send('tomas', 'POST', '/patients', AMINA)['id']}"
    v.send("tomas", "GET", patient)
    v.send("tomas", "PATCH", patient, {"status": "admitted", "diagnosis": "Severe malaria"}, If_Match='"1"')
    v.send("tomas", "PATCH", patient, {"status": "admitted", "diagnosis": "Influenza"}, If_Match='"1"')
    booking = {"appointment_datetime": SLOT, "duration_minutes": 30, "reason": "Follow-up", "patient_id": 1}
    appointment = f"/appointment/{v.send('tomas', 'POST', '/appointment', booking)['id']}"
    v.send("tomas", "POST", "/appointment", booking)
    v.send("tomas", "PATCH", appointment, {**booking, "patient_id": "1", "status": "Checked in"})
    films = [("patient_id", "1"), ("diagnosis", "Malaria"), ("images", scan()), ("images", scan("JPEG"))]
    made = v.send("tomas", "POST", "/reports", form=films)
    v.send("", "GET", made["images"][0]["image_url"])
    more = [("diagnosis", "Malaria; second films added"), ("images", scan(colour="red")), ("images", scan("WEBP"))]
    v.send("tomas", "PATCH", f"/reports/{made['id']}", form=more)
    v.send("tomas", "GET", f"/reports/{made['id']}")
    renewed = v.send("", "POST", "/refresh", Authorization=f"Bearer {v.tokens['tomas']['refresh_token']}")
    v.tokens["tomas"] = renewed
    v.send("tomas", "PATCH", patient, {"status": "Discharged", "diagnosis": "Malaria"})
    v.send("tomas", "GET", f"{patient}/history")
    v.send("tomas", "POST", "/logout")
    v.send("tomas", "GET", "/me")


def every_other_route(v: Visitor) -> None:
    v.sign_in("tomas")
    otto = f"/user/{v.sign_up('otto', 'doctor', by='ada')}"
    v.sign_in("otto")
    for path in ("/", "/healthz", "/readyz", "/nowhere", "/patients/", "/static/nothing.js"):
        v.send("", "GET", path)
    v.send("", "OPTIONS", "/patients", Origin="https://spa.example", Access_Control_Request_Method="POST")
    v.send("ada", "HEAD", "/patients")
    v.send("ada", "PUT", "/patients")
    for number, name in enumerate(("Zawadi", "Baraka", "Chidi", "Éloïse", "Njeri"), 2):
        v.send("otto", "POST", "/patients", {**AMINA, "first_name": name, "phone_number": f"0712 345 67{number}"})
        day = {"appointment_datetime": f"2030-03-0{number}T09:00", "patient_id": number, "reason": "Control"}
        v.send("otto", "POST", "/appointment", day, Idempotency_Key=f"key-{number}")
        v.send("otto", "POST", "/appointment", day, Idempotency_Key=f"key-{number}")
        v.send("otto", "POST", "/reports", form=[("patient_id", str(number)), ("images", scan("GIF"))])
    v.send("otto", "POST", "/appointment", {"patient_id": 2}, Idempotency_Key="key-2")
    for query in (
        "", "?limit=2", "?limit=2&total=true", "?sort=-last_name&limit=3", "?q=zaw", "?q=eloise", "?q=0712345673",
        "?status=admitted&status=critical", "?admitted_from=2026-01-01&admitted_to=2026-12-31", "?status=unheard",
        "?limit=0", "?limit=501", "?colour=red", "?sort=colour", "?cursor=nonsense&limit=2", "?q=zaw&sort=id",
    ):  # fmt: skip
        v.send("otto", "GET", f"/patients{query}")
    for query in (
        "", "?limit=2", "?user_id=3", "?patient_id=2&status=scheduled", "?from=2030-03-03&to=2030-03-05",
        "?sort=-appointment_datetime&limit=3", "?from=tomorrow", "?status[]=Checked%20in",
    ):  # fmt: skip
        v.send("otto", "GET", f"/appointment{query}")
    for query in ("", "?limit=2&total=true", "?user_id=3", "?patient_id=2", "?from=2020-01-01", "?sort=-created_at"):
        v.send("otto", "GET", f"/reports{query}")
    for query in ("", "?q=ott", "?role=doctor", "?is_active=true", "?sort=-last_name&limit=1"):
        v.send("ada", "GET", f"/users{query}")
    v.send("ada", "GET", otto)
    v.send("ada", "PATCH", otto, {"last_name": "Otieno", "email": "Otto@clinic.example"})
    v.send("otto", "PATCH", otto, {"role": "admin"})
    v.send("otto", "POST", "/me/password", {"current_password": PASSWORD, "new_password": "four violet herons"})
    v.sign_in("otto", "four violet herons")
    v.send("otto", "GET", "/me/sessions")
    v.send("otto", "DELETE", "/me/sessions/9999")
    v.send("", "POST", "/password/forgot", {"email": "otto@clinic.example"})
    v.send(
        "", "POST", "/password/reset", {"token": "Zk3mJ0c9pYq2b1tVw5x8Lr7sNd4hGf6aQeRuTiOyPzA", "password": PASSWORD}
    )
    for kind, path in (("patient", "/patient/2"), ("appointment", "/appointment/3"), ("report", "/reports/2")):
        v.send("ada", "GET", path)
        v.send("ada", "DELETE", path, If_Match='"99"')
        v.send("ada", "DELETE", path)
        v.send("ada", "GET", path)
        v.send("ada", "POST", f"{path}/restore")
        v.send("ada", "GET", f"{path}/history")
        v.send("ada", "GET", f"/audit?kind={kind}&limit=5")
    images = v.send("ada", "GET", "/reports/1").get("images", [])
    v.send("ada", "DELETE", f"/reports/1/images/{images[0]['id']}")
    v.send("ada", "DELETE", f"/reports/1/images/{images[0]['id']}")
    v.send("ada", "DELETE", otto)
    v.send("otto", "DELETE", "/patient/1")
    v.send("ada", "GET", "/audit")
    v.send("ada", "GET", "/audit?kind=unheard")


def what_is_refused(v: Visitor) -> None:
    v.send("", "GET", "/patients")
    v.send("", "GET", "/patients", Authorization="Bearer nonsense")
    v.send("", "GET", "/patients", Authorization="Basic nonsense")
    v.send("", "POST", "/login", {"email": "ada@clinic.example", "password": "wrong"})
    v.send("", "POST", "/login", {"email": "nobody@clinic.example", "password": "wrong"})
    for body in ({}, [], None, {"email": 1}, {"email": "ada@clinic.example", "password": None, "colour": "red"}):
        v.send("", "POST", "/login", body)
    for fields in (
        {"password": "password"}, {"password": "short"}, {"email": "no email"}, {"role": "king"}, {"first_name": ""},
        {"email": "ada@clinic.example"}, {"colour": "red"},
    ):  # fmt: skip
        person = {"first_name": "Eve", "last_name": "O", "email": "eve@clinic.example", "role": "doctor"}
        v.send("", "POST", "/signup", {**person, "password": PASSWORD, **fields})
    for fields in (
        {"first_name": None}, {"first_name": " "}, {"last_name": "x" * 300}, {"phone_number": "no number"},
        {"status": "unheard"}, {"sex": "unheard"}, {"date_of_birth": "2090-01-01"}, {"date_of_birth": "tomorrow"},
        {"admitted_at": "2026-02-30"}, {"discharged_at": "2020-01-01"}, {"mrn": "1"}, {"id": 7}, {"colour": "red"},
    ):  # fmt: skip
        v.send("otto", "POST", "/patients", {**AMINA, **fields})
        v.send("otto", "PATCH", "/patient/3", fields)
    for fields in (
        {"appointment_datetime": "yesterday"}, {"appointment_datetime": "2020-01-01T10:00"}, {"patient_id": 999},
        {"user_id": 999}, {"duration_minutes": 4}, {"duration_minutes": 481}, {"status": "unheard"},
        {"appointment_datetime": "2030-03-03T09:15"}, {"overbooked": "yes"}, {"colour": "red"}, {"patient_id": "x"},
    ):  # fmt: skip
        v.send("otto", "POST", "/appointment", {"appointment_datetime": SLOT, "patient_id": 4, **fields})
    v.send("otto", "PATCH", "/appointment/3", {"status": "completed"})
    v.send("otto", "POST", "/reports", form=[("patient_id", "3")])
    v.send("otto", "POST", "/reports", form=[("patient_id", "999"), ("images", scan())])
    v.send("otto", "POST", "/reports", form=[("patient_id", "3"), ("images", ("a.png", b"no picture", "image/png"))])
    v.send("otto", "POST", "/reports", form=[("patient_id", "3"), ("images", ("a.png", scan()[1][:60], "image/png"))])
    v.send("otto", "POST", "/reports", form=[("patient_id", "3"), ("films", scan())])
    v.send("otto", "POST", "/reports", {"patient_id": 3})
    v.send("otto", "POST", "/patients", raw=b"{")
    v.send("otto", "POST", "/patients", raw=b"a=b", Content_Type="application/x-www-form-urlencoded")
    v.send("otto", "POST", "/patients", raw=b"\xff\xfe", Content_Type="application/json")
    v.send("otto", "POST", "/patients", AMINA, Idempotency_Key="x" * 300)
    for path in ("/patient/999", "/patient/x", "/patient/99999999999999999999", "/reports/999", "/user/999"):
        v.send("otto", "GET", path)
    v.send("otto", "GET", "/audit")
    v.send("otto", "GET", "/media/nothing.png?reader=1&expires=1&signature=x")
    for _ in range(6):
        v.send("", "POST", "/login", {"email": "tomas@clinic.example", "password": "wrong"})


@contextmanager
def serving(root: Path, url: str, folder: str, zone: str = "") -> Iterator[Server]:
    """A version on this database, migrated by itself. `zone` is said to a database that has none yet."""
    server = Server(url, folder, root=root, SIGNUP="open", **SECRETS)
    try:
        if zone:
            server.flask("timezone", zone)
        server.start()
        yield server
    finally:
        server.stop()


def answers(root: Path, url: str) -> list[Exchange]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, serving(root, url, folder) as server:
        visitor = Visitor(server)
        for part in (day_at_the_clinic, every_other_route, what_is_refused):
            part(visitor)
        return visitor.exchanges


def compare(old: list[Exchange], new: list[Exchange], sentences: dict[str, str]) -> int:
    """Prints what differs, adds changed sentences of error bodies; the number of answers that differ otherwise."""
    differing = 0
    for before, after in zip(old, new, strict=True):
        was, now = before.lines(), after.lines()
        if was == now:
            continue
        changed = [
            line for line in difflib.unified_diff(was, now, before.name, after.name, n=0, lineterm="")
            if not line.startswith("@@")
        ]  # fmt: skip
        gone, come = ([line[1:].strip() for line in changed[2:] if line[0] == sign] for sign in "-+")
        if before.status == after.status >= 400 and len(gone) == len(come) and all(map(is_sentence, gone + come)):
            sentences |= dict(zip(gone, come, strict=True))
            continue
        differing += 1
        print(*(line[:400] for line in changed), sep="\n", end="\n\n")
    return differing


def is_sentence(line: str) -> bool:
    """Whether a line of an error body is its `msg`, its `code` or a sentence of its `errors`."""
    return line.startswith(('"msg": ', '"code": ')) or (line.startswith('"') and '": ' not in line)


def take_over(old: Path, new: Path, url: str) -> list[str]:
    """Return what fails when the new version takes over a database that the old version seeded and used."""
    failed = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with serving(old, url, folder) as server:
            visitor = Visitor(server)
            day_at_the_clinic(visitor)
            every_other_route(visitor)
            code, said = server.flask("seed", "--add")
            if code:
                failed.append(f"flask seed: {said}")
            link = visitor.send("ada", "GET", "/reports/1")["images"][0]["image_url"]
            code, head = server.flask("audit", "head")
            head = head.strip().splitlines()[-1]
        with serving(new, url, folder, "UTC") as server:
            code, said = server.flask("audit", "verify", "--head", head)
            print("flask audit verify, with the old head:", said.strip().splitlines()[-1])
            if code:
                failed.append(f"flask audit verify: {said}")
            later = Visitor(server, tokens=visitor.tokens)
            later.send("ada", "GET", "/patients?limit=3")
            later.send("", "GET", re.sub(r"^https?://[^/]+", "", link))
            later.send("", "POST", "/refresh", Authorization=f"Bearer {visitor.tokens['ada']['refresh_token']}")
            later.sign_in("ada")
            failed += [f"{one.name}: {one.status} {one.body}" for one in later.exchanges if one.status != 200]
    return failed


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("old", type=Path)
    options.add_argument("new", type=Path, nargs="?", default=ROOT)
    options.add_argument("--engine", choices=["sqlite", "postgresql"], action="append")
    options.add_argument("--sentences-may-differ", action="store_true")
    options.add_argument("--list", action="store_true", help="print every request with the old version's status")
    given = options.parse_args()
    old, new = given.old.resolve(), given.new.resolve()
    sentences: dict[str, str] = {}
    failures = 0
    for engine in given.engine or ["sqlite", "postgresql"]:
        with ExitStack() as stack:
            if engine == "sqlite":
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                urls = [f"sqlite:///{folder}/{name}.db" for name in ("old", "new", "both")]
            else:
                at = stack.enter_context(postgresql_server())
                urls = [stack.enter_context(empty_database(at, f"hosi_{name}")) for name in ("old", "new", "both")]
            before, after = answers(old, urls[0]), answers(new, urls[1])
            if given.list:
                print(*(f"{one.name}: {one.status}" for one in before), sep="\n")
            differing = compare(before, after, sentences)
            print(f"{engine}: {len(before)} answers compared, {differing} differ")
            failed = take_over(old, new, urls[2])
            print(*failed, f"{engine}: a database of the old version: {len(failed)} failures", sep="\n")
            failures += differing + len(failed)
    for was, now in sorted(sentences.items()):
        print(f"sentence: {was}\n       -> {now}")
    print(f"{len(sentences)} sentences of error bodies changed")
    return int(bool(failures or (sentences and not given.sentences_may_differ)))


if __name__ == "__main__":
    sys.exit(main())
