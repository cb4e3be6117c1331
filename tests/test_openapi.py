"""The OpenAPI document is complete and valid, and describes the real answers."""

import re
from collections.abc import Callable, Iterator
from copy import copy
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
from server import errors, openapi
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


def parts(node: Any) -> Iterator[Any]:
    """Yield every object of the document."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, dict | list):
        for part in node.values() if isinstance(node, dict) else node:
            yield from parts(part)


def fields(app: Flask, model: str) -> Any:
    return document(app)["components"]["schemas"][model]["properties"]


def test_the_words_of_an_enum_stand_once_in_a_component_of_their_own(app: Flask) -> None:
    listed = [part["enum"] for part in parts(document(app)) if "enum" in part]
    for kind in (Role, Sex, PatientStatus, AppointmentStatus):
        assert listed.count(list(kind)) == 1
    assert fields(app, "PatientOut")["status"] == {"$ref": "#/components/schemas/PatientStatus"}
    assert fields(app, "PatientIn")["sex"] == {"anyOf": [{"$ref": "#/components/schemas/Sex"}, {"type": "null"}]}
    assert fields(app, "PatientIn")["date_of_birth"]["anyOf"] == [
        {"type": "string", "format": "date"},
        {"type": "null"},
    ]


def test_no_default_makes_generated_clients_require_a_field(app: Flask) -> None:
    doc = document(app)
    assert not [part for part in parts(doc) if "default" in part]
    assert doc["components"]["schemas"]["PatientIn"]["required"] == ["first_name", "last_name", "phone_number"]
    assert fields(app, "PatientIn")["status"]["description"] == "By default `admitted`."
    assert fields(app, "AppointmentIn")["duration_minutes"]["description"] == "By default `30`."


def test_an_appointment_needs_a_patient(app: Flask) -> None:
    assert "patient_id" in document(app)["components"]["schemas"]["AppointmentIn"]["required"]
    assert fields(app, "AppointmentIn")["patient_id"]["type"] == "integer"


def test_images_are_files_whose_type_the_client_says(app: Flask) -> None:
    assert not [part for part in parts(document(app)) if "encoding" in part]
    _, _, filing = operations(document(app))["create_report"]
    assert list(filing["requestBody"]["content"]) == ["multipart/form-data"]  # else orval and hey-api send JSON
    for form in ("ReportInForm", "ReportPatchForm"):
        assert fields(app, form)["images"]["items"] == {"type": "string", "format": "binary"}
    assert {fields(app, "ImageOut")[name]["format"] for name in ("image_url", "thumbnail_url")} == {"uri"}


@pytest.mark.parametrize(
    "time",
    [
        *("2027-02-01", "2027-02-01T10:00", "2027-02-01 10", "20270201T1000", "2027-02-01T10:00:00.123Z"),
        *("2027-02-01T10:00+03:00", "1920-01-01T00:00:00.123456789-00:44:30"),
    ],
)
def test_a_time_of_a_request_is_a_text_that_may_have_no_offset(app: Flask, time: str) -> None:
    _, _, listing = operations(document(app))["list_appointments"]
    queried = {parameter["name"]: parameter["schema"] for parameter in listing["parameters"]}
    for field in (
        fields(app, "AppointmentIn")["appointment_datetime"],
        fields(app, "PatientIn")["admitted_at"]["anyOf"][0],
        queried["from"],
        queried["to"],
    ):
        assert "format" not in field
        assert field["description"]
        assert re.search(field["pattern"], time, re.ASCII)
        assert not re.search(field["pattern"], "tomorrow")
        assert len(time) <= field["maxLength"]


def test_a_time_of_an_answer_is_a_date_time_of_rfc_3339(app: Flask) -> None:
    assert fields(app, "AppointmentOut")["appointment_datetime"] == {"type": "string", "format": "date-time"}
    assert fields(app, "PatientOut")["admitted_at"]["anyOf"][0] == {"type": "string", "format": "date-time"}


def test_fields_that_a_change_ignores_have_their_types(app: Flask) -> None:
    owned = {
        f"{name}.{field}": about
        for name, model in document(app)["components"]["schemas"].items()
        for field, about in model.get("properties", {}).items()
        if about.get("readOnly")
    }
    assert {"PatientPatch.mrn", "UserPatch.id", "AppointmentPatch.doctor", "ReportPatch.images"} <= owned.keys()
    assert not [name for name, about in owned.items() if not about.keys() & {"type", "$ref", "anyOf"}]
    assert owned["PatientPatch.created_at"]["format"] == "date-time"
    assert not [part for part in parts(document(app)) if "x-answer" in part]


def test_every_component_is_used(app: Flask) -> None:
    doc = document(app)
    used = {part["$ref"].rpartition("/")[2] for part in parts(doc) if "$ref" in part}
    for kind in ("schemas", "responses", "parameters", "headers"):
        assert not doc["components"][kind].keys() - used, kind


def test_a_json_body_has_an_example(app: Flask) -> None:
    for name, (_, _, op) in operations(document(app)).items():
        content = op.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            assert content["application/json"]["examples"]["example"]["value"], name


def test_the_server_is_at_its_public_address(app: Flask, make_app: Callable[..., Flask]) -> None:
    assert document(app)["servers"] == [{"url": "/"}]
    public = make_app(PUBLIC_URL="https://api.clinic.example")
    assert document(public)["servers"] == [{"url": "https://api.clinic.example"}]


def test_every_required_field_and_every_field_of_an_answer_has_an_example(app: Flask) -> None:
    lacking = {
        f"{name}.{field}"
        for name, model in document(app)["components"]["schemas"].items()
        if "properties" in model and name != "Problem" and not name.endswith("Form")
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
    assert client.send("PUT", "/user/1/hours", example_of_model(document(app), "WeekIn")).status_code == 200
    absent = {"starts_at": "2031-01-01", "ends_at": "2031-01-01"}
    assert client.post("/user/1/absences", absent).status_code == 201
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
        body = copy(example_of(doc, op["requestBody"]["content"][media_type]["schema"]))
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
        schema = schema.get("anyOf", [schema])[0]  # a timeline begins with its appointments to come
        assert example_of(doc, schema).keys() == body.keys(), name


def test_every_example_of_an_error_has_its_shape(app: Flask) -> None:
    for code, (_, _, example) in openapi.ERRORS.items():
        assert {"msg", "code"} <= example.keys() <= {"msg", "code", "errors"}, code
        assert example["code"] in list(errors.Code), code
