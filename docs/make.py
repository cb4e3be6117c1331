"""Writes the tables of routes and rights, the Postman collection and its environment, from the views.

`make docs` and `make postman` run it. A test fails if a file differs from what this writes.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

# From here on the modules of both folders can be imported.
import postman  # noqa: E402
from postman import JSON, operations, resolve  # noqa: E402

from app import create_app  # noqa: E402
from clinic.about import ABOUT  # noqa: E402
from server import openapi  # noqa: E402
from server.routes import Route, routes  # noqa: E402


def application() -> tuple[list[Route], JSON]:
    """Return the routes and the OpenAPI document of an application without a database."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app({"FLASK_ENV": "testing", "INSTANCE_PATH": folder})
        return routes(app, ABOUT.tags, openapi.ERRORS), json.loads(app.extensions["openapi"]())


# --- The tables of routes and of rights ---

INTRODUCTION = """<!-- `make docs` writes this page. -->

Every route speaks JSON, save `/docs`, `/media/…`, `/reset-password` and, for browsers, `/`. The page `/docs` shows
every field, example and error; `/openapi.json` is the same as a document. Required fields are bold.
Every route may also answer 500, and the
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
        if schema.get("type") == "array":
            schema = resolve(doc, schema["items"])
        for name, field in schema["properties"].items():
            if not field.get("readOnly"):
                found.append(f"**`{name}`**" if name in schema.get("required", ()) else f"`{name}`")
    return " ".join(found)


def written() -> dict[str, str]:
    """Return the name and the text of every file that this module writes."""
    found, doc = application()
    made = {"collection": postman.collection(doc), "environment": postman.environment()}
    return {
        "endpoints.md": endpoints(found, doc),
        **{
            f"hosi.postman_{name}.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            for name, content in made.items()
        },
    }


if __name__ == "__main__":
    for name, text in written().items():
        (DOCS / name).write_text(text, encoding="utf-8")
