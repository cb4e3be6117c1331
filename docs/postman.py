"""Builds the Postman collection and its environment from the OpenAPI document.

Each request runs alone and in any order: postman_prepare.js makes what its variables name, and each request has a test
of its status.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JSON = dict[str, Any]
PREPARE, KEEP = ((Path(__file__).parent / f"postman_{name}.js").read_text("utf-8") for name in ("prepare", "keep"))
SETTINGS = {"base_url": "http://127.0.0.1:5000", "email": "postman@clinic.example", "password": "three green herons"}
IMAGES = ("docs/images/ecg.png", "docs/images/chest.png")


def resolve(doc: JSON, node: JSON) -> JSON:
    """Return the node, or the node that its `$ref` names."""
    while "$ref" in node:
        found: Any = doc
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def operations(doc: JSON) -> dict[str, tuple[str, str, JSON]]:
    """Return the method, the path and the description of each operation, by its name."""
    return {op["operationId"]: (m.upper(), path, op) for path, item in doc["paths"].items() for m, op in item.items()}


# --- A request ---


@dataclass(frozen=True)
class Special:
    """What a request of the reference has beside what the OpenAPI document says."""

    fields: JSON = field(default_factory=dict)  # in place of the example's
    status: int = 0  # 0: that of the success
    token: str = ""  # the variable of the token, "" for the one that the operation takes
    after: str = ""  # JavaScript after a success


def keeps(variable: str, what: str = "answer.id") -> str:
    return f'pm.environment.set("{variable}", {what});'


def forgets(*variables: str) -> str:
    return "\n".join(f'pm.environment.unset("{variable}");' for variable in variables)


SPECIAL = {
    "signup": Special({"email": "{{new_email}}"}),
    "login": Special({"email": "{{email}}", "password": "{{password}}"}),
    "logout": Special(after=forgets("access_token", "refresh_token", "expires_at")),
    "change_my_password": Special({"current_password": "{{password}}"}, token="spare_access_token"),
    "forgot_password": Special({"email": "{{email}}"}),
    "reset_password": Special(status=422),  # a token comes by mail alone
    "update_user": Special({"email": "{{new_email}}"}),
    "create_patient": Special(after=keeps("patient_id")),
    "create_appointment": Special({"appointment_datetime": "{{slot}}"}, after=keeps("appointment_id")),
    "update_appointment": Special({"appointment_datetime": "{{slot}}"}),
    "create_absence": Special({"starts_at": "{{absence_start}}", "ends_at": "{{absence_end}}"}, status=201),
    "swap_appointments": Special({"first": "{{appointment_id}}", "second": "{{spare_appointment_id}}"}),
    "merge_patient": Special({"into": "{{patient_id}}"}),
    "create_report": Special(after=keeps("report_id")),
}


def variable(operation: str, name: str) -> str:
    """Return the variable of an id in the address: a record that a request archives or restores is nobody else's."""
    kind = {"delete": "spare_", "merge": "spare_", "restore": "archived_"}.get(operation.partition("_")[0], "")
    return f"{kind}{name}"


def script(listen: str, text: str) -> JSON:
    return {"listen": listen, "script": {"type": "text/javascript", "exec": text.strip().splitlines()}}


def example(doc: JSON, op: JSON) -> tuple[str, JSON]:
    """Return the media type and the example of an operation's body, "" if it has no body."""
    for media_type, content in op.get("requestBody", {}).get("content", {}).items():
        for named in content.get("examples", {}).values():
            return media_type, named["value"]
        return media_type, resolve(doc, content["schema"])["examples"][0]
    return "", {}


def _query(doc: JSON, op: JSON) -> list[JSON]:
    """Return the parameters of an operation's query string, switched off where they are optional."""
    parameters = [resolve(doc, reference) for reference in op["parameters"]]
    return [
        {
            "key": parameter["name"],
            "value": f"{{{{{parameter['name']}}}}}" if parameter["required"] else "",
            "disabled": not parameter["required"],
            "description": parameter.get("description", ""),
        }
        for parameter in parameters
        if parameter["in"] == "query"
    ]


def _auth(op: JSON, token: str) -> JSON:
    """Return the token that a request sends: the variable `token`, else the token that the operation takes."""
    if not op["security"]:
        return {"type": "noauth"}
    token = token or ("refresh_token" if "refresh_token" in op["security"][0] else "access_token")
    return {"type": "bearer", "bearer": [{"key": "token", "value": f"{{{{{token}}}}}", "type": "string"}]}


def _body(media_type: str, fields: JSON) -> JSON:
    if media_type == "multipart/form-data":
        form = [{"key": key, "value": str(value), "type": "text"} for key, value in fields.items()]
        form += [{"key": "images", "type": "file", "src": image} for image in IMAGES]
        return {"mode": "formdata", "formdata": form}
    raw = json.dumps(fields, indent=2, ensure_ascii=False)
    raw = re.sub(r'"\{\{(\w+_id)\}\}"', r"{{\1}}", raw)  # the variable holds a number, so it needs no quotes
    return {"mode": "raw", "raw": raw, "options": {"raw": {"language": "json"}}}


def request(doc: JSON, name: str, token: str = "", ids: JSON | None = None, **fields: Any) -> JSON:
    """Return an operation as a request that sends its example, with these fields instead of the example's.

    A field without a value is left out. `ids` are the variables of the ids in the address, where they are others.
    """
    method, path, op = operations(doc)[name]
    media_type, body = example(doc, op)
    linked = {key: f"{{{{{key}}}}}" for key in body if key.endswith("_id")} if isinstance(body, dict) else {}
    parts = re.sub(r"\{(\w+)\}", r":\1", path).strip("/").split("/")
    made: JSON = {
        "auth": _auth(op, token),
        "method": method,
        "header": [],
        "url": {
            "raw": "{{base_url}}/" + "/".join(parts),
            "host": ["{{base_url}}"],
            "path": parts,
            "query": _query(doc, op),
            "variable": [
                {"key": part, "value": f"{{{{{(ids or {}).get(part) or variable(name, part)}}}}}"}
                for part in re.findall(r"\{(\w+)\}", path)
            ],
        },
        "description": op["description"],
    }
    if media_type:
        sent = {**body, **linked, **fields} if isinstance(body, dict) else body
        given = {key: value for key, value in sent.items() if value is not None} if isinstance(sent, dict) else sent
        made["body"] = _body(media_type, given)
    if made.get("body", {}).get("mode") == "raw":
        made["header"].append({"key": "Content-Type", "value": "application/json"})
    return made


def _tested(title: str, status: int, made: JSON, *tests: str) -> JSON:
    """Return the request with a test of its status; the other lines are JavaScript after it."""
    lines = [
        f"pm.test({json.dumps(f'{title}: {status}', ensure_ascii=False)}, () => pm.response.to.have.status({status}));"
    ]
    if tests:
        lines += [f"if (pm.response.code === {status}) {{", "  const answer = pm.response.json();"]
        lines += [f"  {line}" for text in tests for line in text.splitlines()]
        lines.append("}")
    return {"name": title, "event": [script("test", "\n".join(lines))], "request": made, "response": []}


# --- The reference: every operation ---


def _operation(doc: JSON, name: str) -> JSON:
    _, _, op = operations(doc)[name]
    special = SPECIAL.get(name, Special())
    success = min(int(code) for code in op["responses"])
    made = request(doc, name, special.token, **special.fields)
    return _tested(op["summary"], special.status or success, made, *filter(None, [special.after]))


def references(doc: JSON) -> list[JSON]:
    """Return a folder for each tag, with every operation."""
    folders = []
    for tag in doc["tags"]:
        items = [_operation(doc, name) for name, (*_, op) in operations(doc).items() if op["tags"] == [tag["name"]]]
        folders.append({"name": tag["name"], "description": tag["description"], "item": items})
    return folders


# --- The story of a day ---

DOCTOR = "doctor_access_token"
DOCTORS_OWN = ("doctor_access_token", "doctor_refresh_token", "doctor_expires_at")
THEIR_RECORDS = ("doctor_appointment_id", "doctor_report_id", "taken_slot")


def step(doc: JSON, title: str, name: str, status: int, /, *tests: str, token: str = DOCTOR, **fields: Any) -> JSON:
    """Return a request of the story. It must answer `status` and pass the tests, each a line of JavaScript."""
    headers = fields.pop("headers", {})
    made = request(doc, name, token, **fields)
    made["header"] += [{"key": key, "value": value} for key, value in headers.items()]
    return _tested(title, status, made, *tests)


def expects(what: str, to: str) -> str:
    return f"pm.test({json.dumps(f'{what} {to}')}, () => pm.expect({what}).to.{to});"


IS_THE_DOCTOR = 'eql(pm.environment.get("doctor_email"))'


def _sign_in_steps(doc: JSON) -> list[JSON]:
    """The doctor signs up and in."""
    return [
        step(doc, "The server is ready", "readyz", 200, expects("answer.status", 'eql("ready")')),
        step(
            doc,
            "A doctor signs up",
            "signup",
            201,
            keeps("doctor_email", "answer.email"),
            keeps("doctor_id"),
            forgets(*DOCTORS_OWN, *THEIR_RECORDS),
            expects("answer", 'not.have.property("password")'),
            token="access_token",  # where a sign-up waits for approval, an administrator's token makes it active
            email="{{new_email}}",
            password="{{password}}",
        ),
        step(
            doc,
            "The doctor signs in",
            "login",
            200,
            expects("answer", 'have.property("access_token")'),
            email="{{doctor_email}}",
            password="{{password}}",
        ),
        step(doc, "Who am I", "get_me", 200, expects("answer.email", IS_THE_DOCTOR)),
    ]


def _patient_steps(doc: JSON) -> list[JSON]:
    """A patient is admitted, and two doctors change the record."""
    return [
        step(doc, "A patient comes", "create_patient", 201, keeps("patient_id")),
        step(doc, "The patient's record", "get_patient", 200, expects("answer.mrn", 'be.a("string")')),
        step(
            doc,
            "The doctor writes what is wrong",
            "update_patient",
            200,
            expects("answer.diagnosis", 'eql("Severe malaria")'),
            headers={"If-Match": "{{patient_etag}}"},
            diagnosis="Severe malaria",
        ),
        step(
            doc,
            "Somebody else is too late with theirs",
            "update_patient",
            412,
            expects("answer", 'have.property("msg")'),
            headers={"If-Match": "{{stale_etag}}"},
            diagnosis="Influenza",
        ),
    ]


def _appointment_steps(doc: JSON) -> list[JSON]:
    """An appointment is booked, once, and the patient comes."""
    return [
        step(
            doc,
            "An appointment",
            "create_appointment",
            201,
            keeps("doctor_appointment_id"),
            keeps("taken_slot", 'pm.environment.get("slot")'),
            expects("answer.patient_name", 'be.a("string")'),
            appointment_datetime="{{slot}}",
        ),
        step(
            doc,
            "The same slot is not given twice",
            "create_appointment",
            409,
            expects("answer.errors", 'have.property("appointment_datetime")'),
            appointment_datetime="{{taken_slot}}",
        ),
        step(
            doc,
            "The patient is there",
            "update_appointment",
            200,
            expects("answer.status", 'eql("checked_in")'),
            ids={"appointment_id": "doctor_appointment_id"},
            appointment_datetime=None,
            status="Checked in",
        ),
    ]


def _desk_steps(doc: JSON) -> list[JSON]:
    """A free slot is found, and the doctor blocks a time."""
    return [
        step(doc, "The doctor's next free slots", "list_free_slots", 200, expects("answer.length", "be.above(0)")),
        step(
            doc,
            "The doctor is away for five minutes",
            "create_absence",
            201,
            expects("answer.cancelled.length", "eql(0)"),
            ids={"user_id": "doctor_id"},
            starts_at="{{absence_start}}",
            ends_at="{{absence_end}}",
        ),
        step(
            doc,
            "The doctor's day",
            "list_appointments",
            200,
            expects("answer", 'be.an("array")'),
        ),
    ]


def _look_at_image(doc: JSON) -> JSON:
    """Return the request of an image by its link, which needs no token and no id."""
    image = step(doc, "Look at an image", "media_file", 200)
    image["request"]["url"] = "{{image_url}}"
    is_png = 'pm.test("a PNG", () => pm.expect(pm.response.headers.get("Content-Type")).to.eql("image/png"));'
    image["event"][0]["script"]["exec"].append(is_png)
    return image


def _report_steps(doc: JSON) -> list[JSON]:
    """A report gets images."""
    own = {"report_id": "doctor_report_id"}
    return [
        step(
            doc,
            "A report with two images",
            "create_report",
            201,
            keeps("doctor_report_id"),
            expects("answer.images.length", "eql(2)"),
        ),
        _look_at_image(doc),
        step(
            doc,
            "Two more images",
            "update_report",
            200,
            expects("answer.images.length", "be.above(2)"),
            ids=own,
            diagnosis="Malaria; second films added",
        ),
        step(doc, "The report", "get_report", 200, expects("answer.doctor_name", 'be.a("string")'), ids=own),
    ]


def _leaving_steps(doc: JSON) -> list[JSON]:
    """The patient goes home, and the doctor signs out."""
    signed_out = keeps("old_access_token", f'pm.environment.get("{DOCTOR}")')
    return [
        step(
            doc,
            "New tokens",
            "refresh",
            200,
            expects("answer.user.email", IS_THE_DOCTOR),
            token="doctor_refresh_token",
        ),
        step(
            doc,
            "The patient goes home",
            "update_patient",
            200,
            expects("answer.status", 'eql("discharged")'),
            status="Discharged",
        ),
        step(
            doc,
            "What happened to the record",
            "get_patient_history",
            200,
            expects("answer[0].action", 'eql("create")'),
        ),
        step(doc, "The doctor signs out", "logout", 200, signed_out, forgets(*DOCTORS_OWN)),
        step(doc, "The old token is good for nothing", "get_me", 401, token="old_access_token"),
    ]


def day(doc: JSON) -> JSON:
    """Return the story of a day, from sign-up to report."""
    parts = (_sign_in_steps, _patient_steps, _appointment_steps, _desk_steps, _report_steps, _leaving_steps)
    about = "From sign-up to report. Run it with the Collection Runner, or with newman: the README says how."
    return {"name": "A day at the clinic", "description": about, "item": [step for part in parts for step in part(doc)]}


# --- The files ---


def collection(doc: JSON) -> JSON:
    """Return the collection. Raises RuntimeError for a variable that nothing makes."""
    made = {
        "info": {
            "name": "Hosi Server",
            "description": doc["info"]["description"],
            "schema": "https://schema.getpostman.com/json/collection/v2.1.0/collection.json",
        },
        "event": [script("prerequest", PREPARE), script("test", KEEP)],
        "item": [day(doc), *references(doc)],
    }
    makers = set(re.findall(r"^  (\w+)(?::|,$)", PREPARE, re.MULTILINE)) | SETTINGS.keys()
    if unmade := set(re.findall(r"\{\{(\w+)\}\}", json.dumps(made["item"]))) - makers:
        raise RuntimeError(f"docs/postman_prepare.js has no maker for {', '.join(sorted(unmade))}.")
    return made


def environment() -> JSON:
    """Return the environment: what a person may set. The requests add ids and tokens to it."""
    return {
        "name": "Hosi Server, local",
        "values": [
            {"key": key, "value": value, "type": "secret" if key == "password" else "default", "enabled": True}
            for key, value in SETTINGS.items()
        ],
        "_postman_variable_scope": "environment",
    }
