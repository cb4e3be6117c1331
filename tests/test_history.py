"""Who changed what, when; and whether anyone has tampered with it."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from client import WHOLE, Client, run_cli
from factories import PASSWORD, files, make_appointment, make_patient, make_report, picture, sign_in, sign_up
from flask import Flask
from sql import sql

from clinic.history import chain


def told(client: Client, address: str) -> list[dict[str, Any]]:
    response = client.get(f"{address}/history")
    assert response.status_code == 200, response.json
    return list(response.json)


def fields(entry: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (change["from"], change["to"]) for name, change in entry["changes"].items()}


# --- What is written ---


def test_every_change_is_written_down_with_its_actor(admin: Client, doctor: Client) -> None:
    address = f"/patient/{make_patient(doctor)['id']}"
    doctor.patch(address, {"diagnosis": "Malaria"})
    admin.delete(address)
    admin.post(f"{address}/restore")
    assert [(entry["action"], entry["version"], entry["actor_id"]) for entry in told(admin, address)] == [
        ("create", 1, doctor.user["id"]),
        ("change", 2, doctor.user["id"]),
        ("archive", 3, admin.user["id"]),
        ("restore", 4, admin.user["id"]),
    ]


def test_a_change_says_what_from_and_what_to(doctor: Client) -> None:
    address = f"/patient/{make_patient(doctor, admitted_at='2026-03-01T10:00:00+03:00')['id']}"
    doctor.patch(address, {"diagnosis": "Malaria", "first_name": "Amina", "date_of_birth": "1990-05-31"})
    doctor.patch(address, {"admitted_at": "2026-03-02T10:00:00Z", "date_of_birth": None})
    created, first, second = told(doctor, address)
    assert fields(created)["diagnosis"] == (None, "")
    assert fields(created)["admitted_at"] == (None, "2026-03-01T07:00:00+00:00")
    assert fields(first) == {"diagnosis": ("", "Malaria"), "date_of_birth": (None, "1990-05-31")}
    assert fields(second) == {
        "admitted_at": ("2026-03-01T07:00:00+00:00", "2026-03-02T10:00:00+00:00"),
        "date_of_birth": ("1990-05-31", None),
    }


def test_times_in_the_history_are_the_clinics(doctor: Client, at_home: Callable[[Client, str], Client]) -> None:
    address = f"/patient/{make_patient(doctor, admitted_at='2026-03-01T22:00:00Z')['id']}"
    doctor.patch(address, {"admitted_at": None})
    created, changed = told(at_home(doctor, "Africa/Nairobi"), address)
    assert fields(created)["admitted_at"] == (None, "2026-03-02T01:00:00+03:00")
    assert fields(changed)["admitted_at"] == ("2026-03-02T01:00:00+03:00", None)


def test_what_changes_nothing_leaves_no_line_and_no_version(doctor: Client) -> None:
    patient = make_patient(doctor)
    address = f"/patient/{patient['id']}"
    assert doctor.patch(address, patient).json["version"] == 1
    assert len(told(doctor, address)) == 1


def test_what_is_refused_leaves_no_line(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor, admitted_at="2026-03-01T10:00")["id"]
    before = sql(app, "SELECT count(*) FROM audit_entries")
    assert doctor.patch(f"/patient/{patient}", {"discharged_at": "2026-02-01T10:00"}).status_code == 422
    assert sql(app, "SELECT count(*) FROM audit_entries") == before


def test_an_appointments_history_says_what_became_of_it(admin: Client, doctor: Client) -> None:
    address = f"/appointment/{make_appointment(doctor, make_patient(doctor)['id'])['id']}"
    doctor.patch(address, {"status": "cancelled"})
    doctor.delete(address)
    entries = told(admin, address)
    assert [entry["action"] for entry in entries] == ["create", "change", "archive"]
    assert fields(entries[0])["appointment_datetime"] == (None, "2030-03-01T10:00:00+00:00")
    assert fields(entries[1]) == {"status": ("scheduled", "cancelled")}


def test_a_reports_history_has_its_images(doctor: Client) -> None:
    address = f"/reports/{make_report(doctor, make_patient(doctor)['id'])['id']}"
    doctor.patch(address, data={"images": files(picture("JPEG")), "replace_images": "true", "diagnosis": "Fracture"})
    assert {(entry["kind"], entry["record_id"], entry["action"]) for entry in told(doctor, address)} == {
        ("report", 1, "create"),
        ("image", 1, "create"),
        ("image", 2, "create"),
        ("report", 1, "change"),
        ("image", 1, "archive"),
    }


def test_a_password_is_only_said_to_have_changed(app: Flask, doctor: Client) -> None:
    doctor.post("/me/password", {"current_password": PASSWORD, "new_password": "another horse battery"})
    created, changed = told(sign_in(app, "Dora", "another horse battery"), f"/user/{doctor.user['id']}")
    assert fields(created)["password"] == (None, "changed")
    assert fields(changed) == {"password": (None, "changed")}
    everything = "".join(str(row) for row in sql(app, "SELECT * FROM audit_entries"))
    assert "$2b$" not in everything
    assert "horse" not in everything


def test_an_account_that_an_administrator_makes_is_theirs_to_answer_for(admin: Client) -> None:
    body = {"first_name": "Otto", "last_name": "Otieno", "email": "otto@clinic.test", "password": PASSWORD}
    made = admin.post("/signup", body).json
    assert told(admin, f"/user/{made['id']}")[0]["actor_id"] == admin.user["id"]


def test_an_account_that_one_makes_oneself_has_no_actor(admin: Client, app: Flask) -> None:
    made = sign_up(app, "Otto")
    assert told(admin, f"/user/{made['id']}")[0]["actor_id"] is None


def test_an_entry_names_the_request_that_made_it(doctor: Client) -> None:
    body = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
    made = doctor.post("/patients", body, headers={"X-Request-ID": "ward-7.42"})
    assert told(doctor, f"/patient/{made.json['id']}")[0]["request_id"] == "ward-7.42"
    changed = doctor.patch(f"/patient/{made.json['id']}", {"diagnosis": "Malaria"})
    assert told(doctor, f"/patient/{made.json['id']}")[1]["request_id"] == changed.headers["X-Request-ID"]


def test_sign_ins_and_failed_ones_are_written_down(app: Flask, admin: Client, doctor: Client) -> None:
    Client(app).post("/login", {"email": "dora@clinic.test", "password": "not the right one"})
    Client(app).post("/login", {"email": "nobody@clinic.test", "password": "not the right one"})
    admin.patch(f"/user/{doctor.user['id']}", {"is_active": False})
    Client(app).post("/login", {"email": "dora@clinic.test", "password": PASSWORD})
    newest = admin.get("/audit?kind=sign-in").json[:4]
    assert [(entry["action"], entry["actor_id"], fields(entry)["email"][1]) for entry in newest] == [
        ("sign-in refused", doctor.user["id"], "dora@clinic.test"),
        ("sign-in failed", None, "nobody@clinic.test"),
        ("sign-in failed", doctor.user["id"], "dora@clinic.test"),
        ("sign-in", doctor.user["id"], "dora@clinic.test"),
    ]
    assert fields(newest[0])["address"] == (None, "127.0.0.1")


def sign_in_at_once(app: Flask, *names: str) -> None:
    threads = [threading.Thread(target=sign_in, args=(app, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_first_sign_ins_at_once_begin_the_chains_once(app: Flask, admin: Client, doctor: Client) -> None:
    sql(app, "DELETE FROM audit_entries WHERE kind = 'sign-in'")
    sql(app, "DELETE FROM audit_heads WHERE kind = 'sign-in'")
    sql(app, "DELETE FROM login_sessions")
    sign_in_at_once(app, *["Ada", "Dora"] * 3)
    versions = sql(app, "SELECT version FROM audit_entries WHERE kind = 'sign-in' ORDER BY id")
    assert [row[0] for row in versions] == [chain.SIGN_IN_CHAINS, None, None, None, None, None]
    assert run_cli(app, "audit", "verify") == WHOLE


def test_sign_ins_at_once_of_one_user_make_one_chain(app: Flask, admin: Client, doctor: Client) -> None:
    sign_in_at_once(app, *["Dora"] * 6)
    number = chain.sign_in_chain(doctor.user["id"])
    seqs = sql(app, f"SELECT seq FROM audit_entries WHERE kind = 'sign-in' AND record_id = {number} ORDER BY id")
    assert [row[0] for row in seqs] == [1, 2, 3, 4, 5, 6, 7]
    assert run_cli(app, "audit", "verify") == WHOLE


def test_changes_of_one_record_at_once_make_one_chain(app: Flask, doctor: Client) -> None:
    address = f"/patient/{make_patient(doctor)['id']}"
    threads = [
        threading.Thread(target=Client(app, doctor.token).patch, args=(address, {"diagnosis": f"Guess {n}"}))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = told(doctor, address)
    assert [entry["version"] for entry in entries] == [1, 2, 3, 4, 5, 6, 7]
    steps = [fields(entry)["diagnosis"] for entry in entries]
    assert [step[0] for step in steps[1:]] == [step[1] for step in steps[:-1]]
    assert run_cli(app, "audit", "verify") == WHOLE


# --- Who may read it ---


def test_a_history_is_for_administrators_and_who_may_edit_the_record(
    anonymous: Client, admin: Client, doctor: Client, other_doctor: Client
) -> None:
    patient = make_patient(doctor)["id"]
    appointment, report = make_appointment(doctor, patient)["id"], make_report(doctor, patient)["id"]
    own = (f"/appointment/{appointment}", f"/reports/{report}", f"/user/{doctor.user['id']}")
    for address in own:
        statuses = [who.get(f"{address}/history").status_code for who in (admin, doctor, other_doctor, anonymous)]
        assert statuses == [200, 200, 403, 401], address
    assert other_doctor.get(f"/patient/{patient}/history").status_code == 200


def test_an_archived_records_history_is_for_administrators(admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    admin.delete(f"/patient/{patient}")
    assert doctor.get(f"/patient/{patient}/history").status_code == 404
    assert told(admin, f"/patient/{patient}")[-1]["action"] == "archive"


def test_the_history_of_all_is_for_administrators(anonymous: Client, admin: Client, doctor: Client) -> None:
    assert [who.get("/audit").status_code for who in (admin, doctor, anonymous)] == [200, 403, 401]


def test_the_history_of_all_is_read_page_by_page_the_newest_first(admin: Client, doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    everything = admin.get("/audit").json
    assert [entry["id"] for entry in everything] == sorted((entry["id"] for entry in everything), reverse=True)
    first = admin.get("/audit?limit=3").json
    second = admin.get(f"/audit?limit=500&before={first[-1]['id']}").json
    assert first + second == everything


def test_the_history_of_all_is_filtered_by_actor_kind_and_time(admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_report(admin, patient, user_id=doctor.user["id"])
    admin.patch(f"/patient/{patient}", {"diagnosis": "Malaria"})
    everything = admin.get("/audit").json

    def found(query: str) -> list[tuple[str, str]]:
        return [(entry["kind"], entry["action"]) for entry in admin.get(f"/audit?{query}").json]

    assert found(f"actor={admin.user['id']}&kind=patient") == [("patient", "change")]
    assert found("kind=report&kind=image") == [("image", "create"), ("report", "create")]
    at = everything[0]["at"].replace("+", "%2B")
    assert found(f"from={at}") == [("patient", "change")]
    assert len(found(f"to={at}")) == len(everything)
    earlier = everything[1]["at"].replace("+", "%2B")
    assert len(found(f"to={earlier}")) == len(everything) - 1
    assert len(found(f"from={earlier}&to={earlier}")) == 2  # a report and its image are written at once
    both = f"actor={admin.user['id']}&actor={doctor.user['id']}"
    assert found(f"{both}&kind=patient&kind=report") == [
        ("patient", "change"),
        ("report", "create"),
        ("patient", "create"),
    ]
    assert len(found(both)) == len([entry for entry in everything if entry["actor_id"]])
    newest = admin.get(f"/audit?{both}&limit=2").json
    older = admin.get(f"/audit?{both}&before={newest[-1]['id']}&limit=500").json
    assert newest + older == [entry for entry in everything if entry["actor_id"]]
    assert admin.get("/audit?kind=secret").status_code == 422
    assert admin.get("/audit?limit=501").status_code == 422


# --- The access log ---


def access_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of the access log, without the ids of the requests."""
    return [record.getMessage().partition(" ")[2] for record in caplog.records if record.name == "hosi.access"]


def test_reading_leaves_a_line_in_the_access_log(app: Flask, doctor: Client, caplog: pytest.LogCaptureFixture) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    with caplog.at_level("INFO", "hosi.access"):
        caplog.clear()
        doctor.get("/patient/1")
        shown = doctor.get("/reports/1").json
        Client(app).get(shown["images"][0]["image_url"])
    image = report["images"][0]["id"]
    me = f"user {doctor.user['id']}"
    assert access_lines(caplog)[:2] == [
        f"{me} GET /patient/1: patient 1",
        f"{me} GET /reports/1: report 1 (images {image})",
    ]
    assert access_lines(caplog)[2].startswith(f"{me} GET: image ")


def test_reading_a_whole_collection_leaves_every_record_in_the_access_log(
    doctor: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Links to images are given out there too."""
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture())
    make_patient(doctor)
    me, (first, second) = f"user {doctor.user['id']}", (image["id"] for image in report["images"])
    with caplog.at_level("INFO", "hosi.access"):
        for limit in ("", "?limit=9"):
            caplog.clear()
            doctor.get(f"/patients{limit}")
            doctor.get(f"/reports{limit}")
            doctor.get(f"/users{limit}")
            assert access_lines(caplog) == [
                f"{me} GET /patients: patient 1, patient 2",
                f"{me} GET /reports: report 1 (images {first} {second})",
            ]


def test_reading_a_history_leaves_a_line_in_the_access_log(doctor: Client, caplog: pytest.LogCaptureFixture) -> None:
    make_patient(doctor)
    with caplog.at_level("INFO", "hosi.access"):
        caplog.clear()
        doctor.get("/patient/1/history")
    assert access_lines(caplog)[-1].endswith("GET /patient/1/history: history of patient 1")


def test_a_history_does_not_give_out_the_address_of_an_image(doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    told = next(entry for entry in doctor.get("/reports/1/history").json if entry["kind"] == "image")
    assert told["changes"]["image_url"] == {"from": None, "to": "set"}


def test_the_link_leads_through_all_of_the_audit(admin: Client, doctor: Client) -> None:
    for _ in range(4):
        make_patient(doctor)
    address: str | None = "/audit?kind=patient&limit=2"
    ids = []
    while address:
        page = admin.get(address)
        ids.append([entry["record_id"] for entry in page.json])
        address = page.headers["Link"].partition(">")[0][1:] if "Link" in page.headers else None
    assert ids == [[4, 3], [2, 1]]
