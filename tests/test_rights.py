"""Rights: every route with every kind of caller, against a table written by hand."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from client import Client
from factories import PASSWORD, files, make_appointment, make_patient, make_report, picture, sign_in, sign_up
from flask import Flask
from sql import snapshot, sql
from sqlalchemy import update

from models import User

PEOPLE = ("anonymous", "inactive", "receptionist", "doctor", "other doctor", "admin")

# The answers to these six, in this order. A record in the path belongs to "doctor"; "made" is fresh for each call.
SIGNED_IN = (401, 401, 200, 200, 200, 200)
CREATES = (401, 401, 201, 201, 201, 201)
CLINICAL = (401, 401, 403, 200, 200, 200)
OWNER = (401, 401, 403, 200, 403, 200)
DESK_OR_OWNER = (401, 401, 200, 200, 403, 200)
ADMIN = (401, 401, 403, 403, 403, 200)
ANYONE = (200, 200, 200, 200, 200, 200)
NOTHING = (404, 404, 404, 404, 404, 404)  # a public address where, in these tests, nothing is

RIGHTS = {
    "GET /": ANYONE,
    "GET /healthz": ANYONE,
    "GET /readyz": ANYONE,
    "GET /metrics": ANYONE,  # on the machine of the server, as here
    "GET /openapi.json": ANYONE,
    "GET /reset-password": ANYONE,
    "GET /docs": ANYONE,
    "GET /static/<path:filename>": NOTHING,
    "GET /media/<key>": (403,) * 6,  # the link alone counts, and this one has no signature
    "POST /signup": (201, 401, 201, 201, 201, 201),  # a token that is given must be good
    "POST /login": ANYONE,
    "POST /refresh": (401,) * 6,  # these send access tokens
    "POST /password/forgot": ANYONE,
    "POST /password/reset": (422,) * 6,  # there is no such link
    "POST /logout": SIGNED_IN,
    "GET /me": SIGNED_IN,
    "POST /me/password": SIGNED_IN,
    "GET /me/sessions": SIGNED_IN,
    "DELETE /me/sessions/<id:session_id>": (401, 401, 404, 200, 404, 404),
    "GET /audit": ADMIN,
    "GET /statistics": SIGNED_IN,
    "GET /users": SIGNED_IN,
    "GET /user/<id:user_id>": SIGNED_IN,
    "PATCH /user/<id:user_id>": OWNER,
    "DELETE /user/<id:user_id>": ADMIN,
    "POST /user/<id:user_id>/restore": ADMIN,
    "GET /user/<id:user_id>/history": OWNER,
    "GET /user/<id:user_id>/hours": SIGNED_IN,
    "PUT /user/<id:user_id>/hours": DESK_OR_OWNER,
    "GET /user/<id:user_id>/absences": SIGNED_IN,
    "POST /user/<id:user_id>/absences": (401, 401, 201, 201, 403, 201),
    "GET /user/<id:user_id>/absences/<id:absence_id>": SIGNED_IN,
    "DELETE /user/<id:user_id>/absences/<id:absence_id>": DESK_OR_OWNER,
    "GET /slots": SIGNED_IN,
    "GET /patients": SIGNED_IN,
    "POST /patients": CREATES,
    "GET /patient/<id:patient_id>": SIGNED_IN,
    "PATCH /patient/<id:patient_id>": SIGNED_IN,
    "DELETE /patient/<id:patient_id>": ADMIN,
    "POST /patient/<id:patient_id>/restore": ADMIN,
    "POST /patient/<id:patient_id>/merge": ADMIN,
    "GET /patient/<id:patient_id>/history": CLINICAL,
    "GET /patient/<id:patient_id>/duplicates": SIGNED_IN,
    "GET /patient/<id:patient_id>/timeline": SIGNED_IN,
    "GET /appointment": SIGNED_IN,
    "POST /appointment": (401, 401, 422, 201, 201, 201),  # by default for oneself, and a receptionist is no doctor
    "GET /appointment/<id:appointment_id>": SIGNED_IN,
    "PATCH /appointment/<id:appointment_id>": DESK_OR_OWNER,
    "DELETE /appointment/<id:appointment_id>": DESK_OR_OWNER,
    "POST /appointment/<id:appointment_id>/restore": ADMIN,
    "GET /appointment/<id:appointment_id>/history": DESK_OR_OWNER,
    "POST /appointment/swap": (401, 401, 422, 422, 422, 422),  # an appointment and itself
    "GET /reports": CLINICAL,
    "POST /reports": (401, 401, 403, 201, 201, 201),
    "GET /reports/<id:report_id>": CLINICAL,
    "PATCH /reports/<id:report_id>": OWNER,
    "DELETE /reports/<id:report_id>": OWNER,
    "DELETE /reports/<id:report_id>/images/<id:image_id>": OWNER,
    "POST /reports/<id:report_id>/restore": ADMIN,
    "GET /reports/<id:report_id>/history": OWNER,
}

# What each sends besides its path.
BODIES: dict[str, Callable[["Ward"], dict[str, Any]]] = {
    "POST /signup": lambda ward: {"json": {**named(f"Nia{ward.another_time()[:10]}"), "password": PASSWORD}},
    "POST /login": lambda ward: {"json": {"email": "dora@clinic.test", "password": PASSWORD}},
    "POST /password/forgot": lambda ward: {"json": {"email": "dora@clinic.test"}},
    "POST /password/reset": lambda ward: {"json": {"token": "x", "password": PASSWORD}},
    "POST /me/password": lambda ward: {"json": {"current_password": PASSWORD, "new_password": "a lantern over it"}},
    "PATCH /user/<id:user_id>": lambda ward: {"json": {"first_name": "Theodora"}},
    "PUT /user/<id:user_id>/hours": lambda ward: {"json": [{"weekday": "mon", "from": "08:00", "to": "12:00"}]},
    "POST /user/<id:user_id>/absences": lambda ward: {"json": ward.another_absence()},
    "POST /patients": lambda ward: {"json": {"first_name": "A", "last_name": "B", "phone_number": "0712 345 678"}},
    "PATCH /patient/<id:patient_id>": lambda ward: {"json": {"phone_number": "0733 000 111"}},
    "POST /patient/<id:patient_id>/merge": lambda ward: {"json": {"into": ward.patient}},
    "POST /appointment": lambda ward: {
        "json": {"patient_id": ward.patient, "appointment_datetime": ward.another_time()}
    },
    "PATCH /appointment/<id:appointment_id>": lambda ward: {"json": {"reason": "fever"}},
    "POST /appointment/swap": lambda ward: {"json": {"first": 1, "second": 1}},
    "POST /reports": lambda ward: {"data": {"patient_id": ward.patient, "images": files(picture())}},
    "PATCH /reports/<id:report_id>": lambda ward: {"json": {"diagnosis": "Malaria"}},
}


def named(name: str) -> dict[str, str]:
    return {"first_name": name, "last_name": "Otieno", "email": f"{name.lower()}@clinic.test"}


class Ward:
    """The six people, and what the doctor among them keeps."""

    def __init__(self, app: Flask) -> None:
        self.app, self.days, self.image, self.absence = app, 0, 0, 0
        sign_up(app, "Ada", "admin")
        for name in ("Dora", "Otto", "Ines"):
            sign_up(app, name)
        sign_up(app, "Rosa", "receptionist")
        self.doctor = sign_in(app, "Dora")
        self.people = {
            "anonymous": Client(app),
            "inactive": sign_in(app, "Ines"),
            "receptionist": sign_in(app, "Rosa"),
            "doctor": self.doctor,
            "other doctor": sign_in(app, "Otto"),
            "admin": sign_in(app, "Ada"),
        }
        inactive = User.id == self.people["inactive"].user["id"]
        sql(app, update(User).where(inactive).values(is_active=False))  # the login itself stays open
        self.patient = make_patient(self.doctor)["id"]

    def another_time(self) -> str:
        self.days += 1
        return f"2030-03-{self.days:02}T10:00"

    def another_absence(self) -> dict[str, str]:
        day = self.another_time()[:10].replace("2030", "2031")
        return {"starts_at": day, "ends_at": day}

    def make(self, kind: str) -> int:
        """The id of what stands for `kind` in a path."""
        if kind == "user":
            absences = f"/user/{self.doctor.user['id']}/absences"
            self.absence = self.doctor.post(absences, self.another_absence()).json["absence"]["id"]
            return int(self.doctor.user["id"])
        if kind == "session":
            return int(next(one["id"] for one in sign_in(self.app, "Dora").get("/me/sessions").json if one["current"]))
        if kind == "appointment":
            return int(make_appointment(self.doctor, self.patient, self.another_time())["id"])
        if kind == "report":
            report = make_report(self.doctor, self.patient, diagnosis="Malaria")
            self.image = report["images"][0]["id"]
            return int(report["id"])
        return int(make_patient(self.doctor)["id"])

    def make_archived(self, kind: str) -> int:
        """The id of such a record, archived; of a user not the doctor, whose logins that would end."""
        record_id = sign_up(self.app, f"Spare{self.another_time()[:10]}")["id"] if kind == "user" else self.make(kind)
        address = {"report": "/reports"}.get(kind, f"/{kind}")
        assert self.people["admin"].delete(f"{address}/{record_id}").status_code == 200
        return int(record_id)


def call(ward: Ward, who: str, route: str) -> int:
    """The status that this person is answered, on a fresh record. Fails if a refusal changed anything."""
    method, rule = route.split()
    path = rule.replace("<key>", "0" * 40 + ".png").replace("<path:filename>", "no.svg")
    if "<id:" in rule:
        kind = rule.partition("<id:")[2].partition("_id>")[0]
        record_id = ward.make_archived(kind) if rule.endswith("/restore") else ward.make(kind)
        path = path.replace(f"<id:{kind}_id>", str(record_id)).replace("<id:image_id>", str(ward.image))
        path = path.replace("<id:absence_id>", str(ward.absence))
    body = BODIES.get(route, lambda _: {})(ward)
    before = snapshot(ward.app)
    status = ward.people[who].send(method, path, **body).status_code
    assert status < 400 or snapshot(ward.app) == before
    return status


def routes(app: Flask) -> set[str]:
    return {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def test_every_route_has_its_row_in_the_table(app: Flask) -> None:
    assert routes(app) == set(RIGHTS)


@pytest.mark.parametrize("route", RIGHTS)
def test_a_route_answers_everybody_as_the_table_says_and_a_refusal_changes_nothing(app: Flask, route: str) -> None:
    ward = Ward(app)
    assert tuple(call(ward, who, route) for who in PEOPLE) == RIGHTS[route]


@pytest.mark.parametrize("route", [route for route, answers in RIGHTS.items() if answers[0] == 401])
def test_a_guarded_route_asks_for_a_token_before_it_looks_at_anything_else(app: Flask, route: str) -> None:
    method, rule = route.split()
    path = re.sub("<.+?>", "999", rule)
    response = Client(app).send(method, f"{path}?nonsense=1", data=b"{not json", content_type="application/json")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/me", "/users", "/patients", "/appointment", "/reports", "/patient/1", "/audit"])
def test_a_head_request_is_guarded_like_its_get(app: Flask, path: str) -> None:
    assert Client(app).send("HEAD", path).status_code == 401


# --- Smuggling ---


@pytest.mark.parametrize(
    "smuggled",
    [
        {"id": 1},
        {"is_active": True},
        {"version": 7},
        {"created_at": "2020-01-01"},
        {"deleted_at": None},
        {"password_hash": "x"},
        {"is_admin": True},
        {"role": "superuser"},
        {"role": ["admin"]},
        {"role": "ADMIN"},
        {"Role": "admin"},
    ],
)
def test_a_sign_up_takes_nothing_but_what_it_asks_for(app: Flask, admin: Client, smuggled: dict[str, Any]) -> None:
    before = snapshot(app)
    response = Client(app).post("/signup", {**named("Nia"), "password": PASSWORD, **smuggled})
    assert response.status_code == (403 if smuggled == {"role": "ADMIN"} else 422)
    assert snapshot(app) == before


def test_a_role_twice_in_a_body_is_no_way_in(app: Flask, admin: Client) -> None:
    body = (
        '{"first_name": "N", "last_name": "K", "email": "n@clinic.test", "password": "%s", "role": "%s", "role": "%s"}'
    )
    for roles in (("doctor", "admin"), ("admin", "doctor"), ("doctor", "doctor")):
        sent = {"data": body % (PASSWORD, *roles), "content_type": "application/json"}
        assert Client(app).post("/signup", **sent).status_code == 400
    assert [user["email"] for user in admin.get("/users").json] == ["ada@clinic.test"]


@pytest.mark.parametrize("smuggled", [{"role": "admin"}, {"is_active": False}, {"role": "Admin", "first_name": "D"}])
def test_a_doctor_does_not_give_themself_rights(app: Flask, doctor: Client, smuggled: dict[str, Any]) -> None:
    before = snapshot(app)
    assert doctor.patch(f"/user/{doctor.user['id']}", smuggled).status_code == 403
    assert snapshot(app) == before


@pytest.mark.parametrize("smuggled", [{"password": "a lantern over it"}, {"deleted_at": None}, {"admin": True}])
def test_a_user_has_no_such_field_to_change_not_even_for_an_admin(
    app: Flask, admin: Client, doctor: Client, smuggled: dict[str, Any]
) -> None:
    before = snapshot(app)
    for client in (doctor, admin):
        response = client.patch(f"/user/{doctor.user['id']}", smuggled)
        assert (response.status_code, list(response.json["errors"])) == (422, list(smuggled))
    assert snapshot(app) == before


OWNED = {"id": 999, "version": 999, "created_at": "2001-01-01T00:00:00Z", "updated_at": "2001-01-01T00:00:00Z"}


@pytest.mark.parametrize("kind", ["user", "patient", "appointment", "reports"])
def test_what_the_server_owns_is_not_changed_by_being_sent(app: Flask, doctor: Client, kind: str) -> None:
    patient = make_patient(doctor)["id"]
    record = {
        "user": lambda: doctor.user,
        "patient": lambda: doctor.get(f"/patient/{patient}").json,
        "appointment": lambda: make_appointment(doctor, patient),
        "reports": lambda: make_report(doctor, patient),
    }[kind]()
    address = f"/{kind}/{record['id']}"
    assert doctor.patch(address, {**record, **OWNED}).status_code == 200
    after = doctor.get(address).json
    assert (after["id"], after["created_at"]) == (record["id"], record["created_at"])
    assert after["version"] in (record["version"], record["version"] + 1)


def test_a_privileged_field_sent_back_unchanged_is_no_change(app: Flask, doctor: Client) -> None:
    address = f"/user/{doctor.user['id']}"
    changed = doctor.patch(address, {**doctor.user, "first_name": "Dorothea"})
    assert (changed.status_code, changed.json["first_name"], changed.json["role"]) == (200, "Dorothea", "doctor")
    appointment = make_appointment(doctor, make_patient(doctor)["id"])
    assert doctor.patch(f"/appointment/{appointment['id']}", {**appointment, "reason": "fever"}).status_code == 200


# --- Another's records ---


def test_a_doctor_changes_no_colleague_whatever_id_the_body_names(
    app: Flask, doctor: Client, other_doctor: Client
) -> None:
    before = snapshot(app)
    mine, theirs = doctor.user["id"], other_doctor.user["id"]
    assert doctor.patch(f"/user/{theirs}", {"id": mine, "first_name": "Mine"}).status_code == 403
    assert doctor.patch(f"/user/{theirs}?user_id={mine}", {"first_name": "Mine"}).status_code in (403, 422)
    assert snapshot(app) == before


def test_an_id_in_the_body_does_not_turn_a_change_to_another_record(
    app: Flask, doctor: Client, other_doctor: Client
) -> None:
    theirs = other_doctor.user
    assert doctor.patch(f"/user/{doctor.user['id']}", {"id": theirs["id"], "first_name": "Dorothea"}).status_code == 200
    assert other_doctor.get("/me").json == theirs


@pytest.mark.parametrize("by", ["doctor", "admin"])
def test_only_an_admin_books_and_reports_for_another_doctor(
    app: Flask, admin: Client, doctor: Client, other_doctor: Client, by: str
) -> None:
    client, theirs = {"doctor": doctor, "admin": admin}[by], other_doctor.user["id"]
    patient = make_patient(doctor)["id"]
    before = snapshot(app)
    booking = {"patient_id": patient, "user_id": theirs, "appointment_datetime": "2030-03-01T10:00"}
    booked = client.post("/appointment", booking)
    reported = client.post("/reports", data={"patient_id": patient, "user_id": theirs, "images": files(picture())})
    expected = 403 if by == "doctor" else 201
    assert (booked.status_code, reported.status_code) == (expected, expected)
    assert (snapshot(app) == before) is (by == "doctor")


@pytest.mark.parametrize("kind", ["appointment", "reports"])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_doctor_hands_their_own_record_to_nobody(
    app: Flask, doctor: Client, other_doctor: Client, kind: str, as_text: bool
) -> None:
    patient = make_patient(doctor)["id"]
    record = make_appointment(doctor, patient) if kind == "appointment" else make_report(doctor, patient)
    before = snapshot(app)
    theirs = other_doctor.user["id"]
    response = doctor.patch(f"/{kind}/{record['id']}", {"user_id": str(theirs) if as_text else theirs})
    assert response.status_code == 403
    assert snapshot(app) == before


@pytest.mark.parametrize("kind", ["appointment", "reports"])
def test_a_doctor_takes_no_colleagues_record(app: Flask, doctor: Client, other_doctor: Client, kind: str) -> None:
    patient = make_patient(doctor)["id"]
    record = make_appointment(doctor, patient) if kind == "appointment" else make_report(doctor, patient)
    before = snapshot(app)
    assert other_doctor.patch(f"/{kind}/{record['id']}", {"user_id": other_doctor.user["id"]}).status_code == 403
    assert snapshot(app) == before


def test_a_form_smuggles_no_more_than_json(app: Flask, doctor: Client, other_doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    before = snapshot(app)
    theirs = str(other_doctor.user["id"])
    for fields in ({"user_id": theirs}, {"images": files(picture()), "user_id": theirs}):
        assert doctor.patch(f"/reports/{report['id']}", data=fields).status_code == 403
    assert other_doctor.patch(f"/reports/{report['id']}", data={"images": files(picture())}).status_code == 403
    assert snapshot(app) == before


def test_only_an_admin_overbooks(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    appointment = make_appointment(doctor, patient)
    before = snapshot(app)
    wanted = {"overbooked": True, "reason": "an emergency"}
    assert doctor.patch(f"/appointment/{appointment['id']}", wanted).status_code == 403
    booking = {"patient_id": patient, "appointment_datetime": "2030-03-01T10:00", **wanted}
    assert doctor.post("/appointment", booking).status_code == 403
    assert snapshot(app) == before
    assert admin.post("/appointment", booking).status_code == 201


def test_who_was_an_admin_a_moment_ago_is_none(app: Flask, admin: Client) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    for role in ("admin", "doctor"):
        admin.patch(f"/user/{nia.user['id']}", {"role": role})
    patient = make_patient(nia)["id"]
    before = snapshot(app)
    assert nia.delete(f"/patient/{patient}").status_code == 403
    assert snapshot(app) == before
