"""Writes the tables of routes and rights, the Postman collection and its environment, from the views.

`make docs` and `make postman` run it. A test fails if a file differs from what this writes.
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from app import create_app  # noqa: E402
from clinic.about import ABOUT  # noqa: E402
from server import openapi  # noqa: E402
from server.routes import Route, routes  # noqa: E402

JSON = dict[str, Any]


def application() -> tuple[list[Route], JSON]:
    """Return the routes and the OpenAPI document of an application without a database."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app({"FLASK_ENV": "testing", "INSTANCE_PATH": folder})
        return routes(app, ABOUT.tags, openapi.ERRORS), json.loads(app.extensions["openapi"])


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


# --- The tables of routes and of rights ---

INTRODUCTION = """<!-- `make docs` writes this page. -->

Every route speaks JSON, save `/docs`, `/media/…` and the redirect of `/`. The page `/docs` shows every field, example
and error; `/openapi.json` is the same as a document. Required fields are bold. Every route may also answer 500, and the
routes that need the database answer 503 while it is away.
"""


def endpoints(found: list[Route], doc: JSON) -> str:
    """Return the page of the routes: a table for each tag, and who may call which route."""
    lines = [INTRODUCTION]
    for tag in ABOUT.tags:
        lines += [f"### {tag}", "", "| route | what it does | who | input | answers |", "|---|---|---|---|---|"]
        lines += [row(route, doc) for route in found if route.contract.tag == tag]
        lines.append("")
    lines += ["### Who may call what", "", "| who | routes |", "|---|---|"]
    for access in dict.fromkeys(route.access for route in found):
        addresses = " · ".join(address(route) for route in found if route.access == access)
        lines.append(f"| {access.who} | {addresses} |")
    return "\n".join(lines) + "\n"


def address(route: Route) -> str:
    path = re.sub(r"\{\w+_id\}", "<id>", route.path).replace("{", "<").replace("}", ">")
    return f"`{route.method} {path}`"


def row(route: Route, doc: JSON) -> str:
    _, _, op = operations(doc)[route.name]
    codes = " ".join(code for code in op["responses"] if code not in ("500", "503"))
    return f"| {address(route)} | {op['summary']} | {route.access.who} | {fields(doc, op)} | {codes} |"


def fields(doc: JSON, op: JSON) -> str:
    """Return the fields of query string and body: a question mark before the query's, the required ones bold."""
    found = []
    for parameter in (resolve(doc, reference) for reference in op["parameters"]):
        if parameter["in"] == "query":
            found.append(f"`?{parameter['name']}`")
    content = op.get("requestBody", {}).get("content", {})
    if content:
        schema = resolve(doc, next(iter(content.values()))["schema"])
        for name, field in schema["properties"].items():
            if not field.get("readOnly"):
                found.append(f"**`{name}`**" if name in schema.get("required", ()) else f"`{name}`")
    return " ".join(found)


# --- Postman ---

REFRESH = """
// Trades the refresh token for a new pair shortly before the access token expires.
const url = pm.variables.replaceIn(pm.request.url.toString());
const itself = ["/login", "/refresh", "/signup"].some((path) => url.endsWith(path));
const access = pm.environment.get("access_token");
const refresh = pm.environment.get("refresh_token");
const decode = require("atob");
const claims = access && JSON.parse(decode(access.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
if (!itself && refresh && claims && claims.exp * 1000 < Date.now() + 10000) {
  pm.sendRequest({
    url: pm.environment.get("base_url") + "/refresh",
    method: "POST",
    header: { Authorization: "Bearer " + refresh },
  }, (error, response) => {
    if (!error && response.code === 200) {
      pm.environment.set("access_token", response.json().access_token);
      pm.environment.set("refresh_token", response.json().refresh_token);
    }
  });
}
"""

KEEP = """
// Keeps the tokens of a login, a refresh or a change of password.
const json = (pm.response.headers.get("Content-Type") || "").startsWith("application/json");
const answer = json ? pm.response.json() : {};
if (answer.access_token && answer.refresh_token) {
  pm.environment.set("access_token", answer.access_token);
  pm.environment.set("refresh_token", answer.refresh_token);
}
"""


def script(listen: str, text: str) -> JSON:
    return {"listen": listen, "script": {"type": "text/javascript", "exec": text.strip().splitlines()}}


def example(doc: JSON, op: JSON) -> tuple[str, JSON]:
    """Return the media type and the example of an operation's body, "" if it has no body."""
    for media_type, content in op.get("requestBody", {}).get("content", {}).items():
        return media_type, resolve(doc, content["schema"])["examples"][0]
    return "", {}


IMAGES = ("docs/images/ecg.png", "docs/images/chest.png")


def _query(doc: JSON, op: JSON) -> list[JSON]:
    """Return the parameters of an operation's query string, switched off where they are optional."""
    parameters = [resolve(doc, reference) for reference in op["parameters"]]
    return [
        {
            "key": parameter["name"],
            "value": "",
            "disabled": not parameter["required"],
            "description": parameter.get("description", ""),
        }
        for parameter in parameters
        if parameter["in"] == "query"
    ]


def request(doc: JSON, name: str, **fields: Any) -> JSON:
    """Return an operation as a request that sends its example, with these fields instead of the example's."""
    method, path, op = operations(doc)[name]
    media_type, body = example(doc, op)
    ids = re.findall(r"\{(\w+)\}", path)
    parts = re.sub(r"\{(\w+)\}", r":\1", path).strip("/").split("/")
    made: JSON = {
        "method": method,
        "header": [],
        "url": {
            "raw": "{{base_url}}/" + "/".join(parts),
            "host": ["{{base_url}}"],
            "path": parts,
            "query": _query(doc, op),
            "variable": [{"key": name, "value": f"{{{{{name}}}}}"} for name in ids],
        },
        "description": op["description"],
    }
    if op["security"] and "refresh_token" in op["security"][0]:
        made["auth"] = {"type": "bearer", "bearer": [{"key": "token", "value": "{{refresh_token}}", "type": "string"}]}
    elif not op["security"]:
        made["auth"] = {"type": "noauth"}
    if media_type == "multipart/form-data":
        form = [{"key": key, "value": str(value), "type": "text"} for key, value in {**body, **fields}.items()]
        form += [{"key": "images", "type": "file", "src": image} for image in IMAGES]
        made["body"] = {"mode": "formdata", "formdata": form}
    elif media_type:
        raw = json.dumps({**body, **fields}, indent=2, ensure_ascii=False)
        raw = re.sub(r'"\{\{(\w+_id)\}\}"', r"{{\1}}", raw)  # the variable holds a number, so it needs no quotes
        made["header"].append({"key": "Content-Type", "value": "application/json"})
        made["body"] = {"mode": "raw", "raw": raw, "options": {"raw": {"language": "json"}}}
    return made


def references(doc: JSON) -> list[JSON]:
    """Return a folder for each tag, with every operation."""
    folders = []
    for tag in doc["tags"]:
        named = [(n, op) for n, (_, _, op) in operations(doc).items() if op["tags"] == [tag["name"]]]
        items = [{"name": op["summary"], "request": request(doc, name), "response": []} for name, op in named]
        folders.append({"name": tag["name"], "description": tag["description"], "item": items})
    return folders


def step(doc: JSON, title: str, name: str, code: int, /, *tests: str, before: str = "", **fields: Any) -> JSON:
    """Return a request of the story. It must answer `code` and pass the tests, each a line of JavaScript."""
    headers = fields.pop("headers", {})
    made = request(doc, name, **fields)
    made["header"] += [{"key": key, "value": value} for key, value in headers.items()]
    lines = [
        f'pm.test("{title}: {code}", () => pm.response.to.have.status({code}));',
        *(["const answer = pm.response.json();"] if tests else []),
        *tests,
    ]
    events = [script("test", "\n".join(lines))]
    if before:
        events.append(script("prerequest", before))
    return {"name": title, "event": events, "request": made, "response": []}


def keeps(variable: str, what: str) -> str:
    return f'pm.environment.set("{variable}", {what});'


def expects(what: str, to: str) -> str:
    return f"pm.test({json.dumps(f'{what} {to}')}, () => pm.expect({what}).to.{to});"


def _sign_in_steps(doc: JSON) -> list[JSON]:
    """The doctor signs up and in."""
    email = 'pm.environment.set("email", "doctor." + Date.now() + "@clinic.example");'
    return [
        step(doc, "The server is ready", "readyz", 200, expects("answer.status", 'eql("ready")')),
        step(
            doc,
            "A doctor signs up",
            "signup",
            201,
            keeps("user_id", "answer.id"),
            expects("answer", 'not.have.property("password")'),
            before=email,
            email="{{email}}",
            password="{{password}}",
        ),
        step(
            doc,
            "The doctor signs in",
            "login",
            200,
            expects("answer", 'have.property("access_token")'),
            email="{{email}}",
            password="{{password}}",
        ),
        step(doc, "Who am I", "get_me", 200, expects("answer.id", 'eql(Number(pm.environment.get("user_id")))')),
    ]


def _patient_steps(doc: JSON) -> list[JSON]:
    """A patient is admitted, and two doctors change the record."""
    has_etag = 'pm.environment.set("etag", pm.response.headers.get("ETag"));'
    return [
        step(doc, "A patient comes", "create_patient", 201, keeps("patient_id", "answer.id"), has_etag),
        step(doc, "The patient's record", "get_patient", 200, expects("answer.status", 'eql("admitted")'), has_etag),
        step(
            doc,
            "The doctor writes what is wrong",
            "update_patient",
            200,
            expects("answer.version", "eql(2)"),
            headers={"If-Match": "{{etag}}"},
            diagnosis="Severe malaria",
        ),
        step(
            doc,
            "Somebody else is too late with theirs",
            "update_patient",
            412,
            expects("answer", 'have.property("msg")'),
            headers={"If-Match": "{{etag}}"},
            diagnosis="Influenza",
        ),
    ]


def _appointment_steps(doc: JSON) -> list[JSON]:
    """An appointment is booked, once, and the patient comes."""
    slot = 'pm.environment.set("slot", new Date(Math.ceil(Date.now() / 36e5) * 36e5 + 864e5).toISOString());'
    return [
        step(
            doc,
            "An appointment for tomorrow",
            "create_appointment",
            201,
            keeps("appointment_id", "answer.id"),
            expects("answer.patient_name", 'eql("Amina Wanjiru")'),
            before=slot,
            patient_id="{{patient_id}}",
            appointment_datetime="{{slot}}",
        ),
        step(
            doc,
            "The same slot is not given twice",
            "create_appointment",
            409,
            expects("answer.errors", 'have.property("appointment_datetime")'),
            patient_id="{{patient_id}}",
            appointment_datetime="{{slot}}",
        ),
        step(
            doc,
            "The patient is there",
            "update_appointment",
            200,
            expects("answer.status", 'eql("checked_in")'),
            appointment_datetime="{{slot}}",
            status="Checked in",
        ),
    ]


def _look_at_image(doc: JSON) -> JSON:
    """Return the request of an image by its link, which needs no token and no id."""
    image = step(doc, "Look at an image", "media_file", 200)
    image["request"]["url"] = "{{image_url}}"
    image["event"] = [
        script(
            "test",
            'pm.test("Look at an image: 200, a PNG", () => {\n'
            "  pm.response.to.have.status(200);\n"
            '  pm.expect(pm.response.headers.get("Content-Type")).to.eql("image/png");\n'
            "});",
        )
    ]
    return image


def _report_steps(doc: JSON) -> list[JSON]:
    """A report gets images."""
    return [
        step(
            doc,
            "A report with two images",
            "create_report",
            201,
            keeps("report_id", "answer.id"),
            keeps("image_url", "answer.images[0].image_url"),
            expects("answer.images.length", "eql(2)"),
            patient_id="{{patient_id}}",
        ),
        _look_at_image(doc),
        step(
            doc,
            "Two more images",
            "update_report",
            200,
            expects("answer.images.length", "eql(4)"),
            diagnosis="Malaria; second films added",
        ),
        step(doc, "The report", "get_report", 200, expects("answer.doctor_name", 'be.a("string")')),
    ]


def _leaving_steps(doc: JSON) -> list[JSON]:
    """The patient goes home, and the doctor signs out."""
    return [
        step(
            doc, "New tokens", "refresh", 200, expects("answer.user.id", 'eql(Number(pm.environment.get("user_id")))')
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
            expects("answer.length", "eql(3)"),
            expects("answer[0].action", 'eql("create")'),
        ),
        step(doc, "The doctor signs out", "logout", 200),
        step(doc, "The old token is good for nothing", "get_me", 401),
    ]


def day(doc: JSON) -> JSON:
    """Return the story of a day, from sign-up to report. It runs on a server where doctors may sign up."""
    parts = (_sign_in_steps, _patient_steps, _appointment_steps, _report_steps, _leaving_steps)
    about = "From sign-up to report. Run it with the Collection Runner, or with newman: the README says how."
    return {"name": "A day at the clinic", "description": about, "item": [step for part in parts for step in part(doc)]}


def collection(doc: JSON) -> JSON:
    return {
        "info": {
            "name": "Hosi Server",
            "description": doc["info"]["description"],
            "schema": "https://schema.getpostman.com/json/collection/v2.1.0/collection.json",
        },
        "auth": {"type": "bearer", "bearer": [{"key": "token", "value": "{{access_token}}", "type": "string"}]},
        "event": [script("prerequest", REFRESH), script("test", KEEP)],
        "item": [day(doc), *references(doc)],
    }


def environment(doc: JSON) -> JSON:
    ids = {name for path in doc["paths"] for name in re.findall(r"\{(\w+_id)\}", path)}
    values = {
        "base_url": "http://127.0.0.1:5000",
        "email": "",
        "password": "three green herons",
        "access_token": "",
        "refresh_token": "",
        **dict.fromkeys(sorted(ids), "1"),
    }
    hidden = {"password", "access_token", "refresh_token"}
    return {
        "name": "Hosi Server, local",
        "values": [
            {"key": key, "value": value, "type": "secret" if key in hidden else "default", "enabled": True}
            for key, value in values.items()
        ],
        "_postman_variable_scope": "environment",
    }


def written() -> dict[str, str]:
    """Return the name and the text of every file that this module writes."""
    found, doc = application()
    postman = {"collection": collection(doc), "environment": environment(doc)}
    return {
        "endpoints.md": endpoints(found, doc),
        **{
            f"hosi.postman_{name}.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            for name, content in postman.items()
        },
    }


if __name__ == "__main__":
    for name, text in written().items():
        (DOCS / name).write_text(text, encoding="utf-8")
