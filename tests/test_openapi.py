"""The OpenAPI document is complete and valid, and describes the real answers."""

from typing import Any

import pytest
from client import Client
from described import document, resolve
from factories import files, make_appointment, make_patient, make_report, picture, sign_up
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator
from sql import empty_tables

from clinic import accounts
from clinic.rights import ADMIN
from models import AppointmentStatus, PatientStatus, Role, Sex
from server import openapi
from server.endpoint import PUBLIC, Access


def operations(doc: Any) -> dict[str, tuple[str, str, Any]]:
    """Return the method, the path and the description of each operation, by its name."""
    return {op["operationId"]: (m.upper(), path, op) for path, item in doc["paths"].items() for m, op in item.items()}


def access(app: Flask) -> dict[str, Access]:
    """Return who may call each view, by the name of the view."""
    views = [view for endpoint, view in app.view_functions.items() if endpoint != "static"]
    return {view.__name__: view.access for view in views}  # type: ignore[attr-defined]


def test_the_document_is_valid(app: Flask) -> None:
    OpenAPIV31SpecValidator(document(app)).validate()


def test_every_route_is_in_it_with_a_summary_and_who_may_call_it(app: Flask) -> None:
    routes = {
        (method, app.view_functions[rule.endpoint].__name__)
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"  # Flask serves these files
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    found = operations(document(app))
    assert {(method, name) for name, (method, _, _) in found.items()} == routes
    assert all(op["summary"] and "Who: " in op["description"] for _, _, op in found.values())


def test_it_is_built_once(app: Flask, anonymous: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    first = anonymous.get("/openapi.json").data
    monkeypatch.setattr(openapi, "build", lambda *_: pytest.fail("built again"))
    assert anonymous.get("/openapi.json").data == first


def test_what_a_guard_asks_for_is_in_the_document(app: Flask) -> None:
    who = access(app)
    for name, (_, path, op) in operations(document(app)).items():
        if who[name] is PUBLIC:
            continue
        assert op["security"] == [{"access_token": []}], path
        assert "401" in op["responses"], path
        assert ("403" in op["responses"]) or who[name] is not ADMIN, path


def test_where_requests_are_counted_429_is_told(app: Flask) -> None:
    told = {name for name, (_, _, op) in operations(document(app)).items() if "429" in op["responses"]}
    assert {"signup", "login", "refresh", "forgot_password", "reset_password", "change_my_password"} == told


def test_enumerated_words_are_listed(app: Flask) -> None:
    schema = document(app)["components"]["schemas"]
    for kind in (Role, Sex, PatientStatus, AppointmentStatus):
        assert schema[kind.__name__]["enum"] == list(kind)


def test_every_required_field_and_every_field_of_an_answer_has_an_example(app: Flask) -> None:
    lacking = {
        f"{name}.{field}"
        for name, model in document(app)["components"]["schemas"].items()
        if name != "Error" and not name.endswith("Form")
        for field in model.get("required", ())
        if field not in model["examples"][0]
    }
    assert not lacking


def test_an_example_stands_at_its_model_alone_lest_swagger_ui_send_fields_that_nobody_filled_in(app: Flask) -> None:
    schema = document(app)["components"]["schemas"]
    assert "examples" not in schema["PatientIn"]["properties"]["first_name"]
    assert schema["PatientIn"]["examples"][0]["first_name"] == "Amina"


def example_of(doc: Any, schema: Any) -> Any:
    return resolve(doc, schema)["examples"][0]


def example_of_model(doc: Any, name: str) -> Any:
    return doc["components"]["schemas"][name]["examples"][0]


def clinic(app: Flask) -> Client:
    """Make the records of the examples: patient 1, appointments 1 and 2, report 1. The caller is user 1, an admin.

    Patient 2 may be the same as patient 1.
    """
    empty_tables(app)
    password = example_of_model(document(app), "PasswordChange")["current_password"]
    user = sign_up(app, "Ada", "admin", password=password)
    signed_in = Client(app).post("/login", {"email": user["email"], "password": password}).json
    client = Client(app, signed_in["access_token"], signed_in)
    for name in ("Adam", "Eve"):
        colleague = {"first_name": name, "last_name": "Otieno", "email": f"{name}@clinic.test", "role": "admin"}
        assert client.post("/signup", {**colleague, "password": password}).status_code == 201
    patient = make_patient(client)
    for day in (1, 2):
        make_appointment(client, patient["id"], f"2030-03-0{day}T10:00", user_id=2)
    make_report(client, patient["id"], diagnosis="Malaria")
    make_patient(client)
    return client


def requests(doc: Any) -> list[tuple[str, str]]:
    """Return each operation with each media type of its body."""
    return [
        (name, media_type)
        for name, (_, _, op) in operations(doc).items()
        for media_type in op.get("requestBody", {"content": {"": None}})["content"]
        if name != "media_file"  # a link is signed, so no example can have one
    ]


def send_example(client: Client, name: str, media_type: str) -> Any:
    doc = document(client.app)
    method, path, op = operations(doc)[name]
    for parameter in op["parameters"]:
        if parameter.get("in") == "path":
            record = 3 if name == "restore_user" else parameter["example"]  # user 1 is the caller
            path = path.replace(f"{{{parameter['name']}}}", str(record))
    if path.endswith("/restore"):
        assert client.delete(path.removesuffix("/restore")).status_code == 200
    sent: dict[str, Any] = {}
    if media_type:
        body = dict(example_of(doc, op["requestBody"]["content"][media_type]["schema"]))
        if name == "reset_password":
            with client.app.app_context():
                link = accounts.new_reset_link(example_of_model(doc, "ForgottenPassword")["email"]) or ""
                body["token"] = link.partition("token=")[2]
        if media_type == "application/json":
            sent["json"] = body
        else:
            sent["data"] = {**body, "images": files(picture(), picture())}
    return client.send(method, path, **sent)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the document is the same on both
def test_every_example_is_accepted_and_answers_look_like_theirs(app: Flask) -> None:
    doc = document(app)
    client = clinic(app)
    for name, media_type in requests(doc):
        if name in ("login", "reset_password"):
            Client(app).post("/signup", example_of_model(doc, "UserIn"))
        if name == "refresh":
            client.token = client.user["refresh_token"]
        response = send_example(client, name, media_type)
        assert response.status_code < 400, (name, response.json)
        method, _, op = operations(doc)[name]
        if method != "GET":
            client = clinic(app)
        answers = op["responses"][str(response.status_code)].get("content", {})
        if not response.is_json or name == "openapi_document":
            continue
        schema, body = answers["application/json"]["schema"], response.json
        if schema.get("type") == "array":
            schema, body = schema["items"], body[0]
        assert example_of(doc, schema).keys() == body.keys(), name


def test_every_example_of_an_error_has_its_shape(app: Flask) -> None:
    for code, (_, _, example) in openapi.ERRORS.items():
        assert example.keys() <= {"msg", "errors"}, code
