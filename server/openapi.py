"""The OpenAPI 3.1 document, built once from the URL map and each view's contract: a new route appears by itself.

What a contract does not say follows by rule: who may call (`POLICY`), which errors can come, which headers apply.
"""

import inspect
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from flask import Flask
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from werkzeug.routing import Rule

JSON = dict[str, Any]
View = Callable[..., Any]

LARGEST_ID = 999_999_999  # as in models.py
MOST_FILES = 50  # as in forms.py
PICTURES = ("jpeg", "png", "webp", "gif", "tiff", "bmp")


class Contract(Protocol):
    """What contract.py leaves at each view."""

    @property
    def status(self) -> int: ...
    @property
    def answer(self) -> Any: ...
    @property
    def takes(self) -> dict[str, type[BaseModel]]: ...
    @property
    def files(self) -> bool: ...


ABOUT = """The backend of a hospital or clinic: staff, patients, appointments, and reports with images.

Sign in with `POST /login` and send `Authorization: Bearer <access_token>`. The access token is good for 30 minutes;
`POST /refresh`, sent with the refresh token, trades it for a new pair.

- Dates and times are ISO 8601. A time without an offset is the clinic's local time; answers carry its offset.
- Ids may be sent as strings, and the words of a list in any case: `"No Show"` is `no_show`.
- A whole record that was given may be sent back, changed: fields that the server owns are ignored.
- A failed request changes nothing, and answers `{"msg": "…", "errors": {"field": ["…"]}}`.
"""

TAGS = {
    "Accounts": ("signup login refresh logout me password", "Sign up, sign in, sign out."),
    "Staff": ("users user", "The staff directory."),
    "Patients": ("patients patient", "Patients."),
    "Appointments": ("appointment", "Appointments, each with the names of patient and doctor."),
    "Reports": ("reports media", "Medical reports and their images."),
    "Audit": ("audit", "Who changed what, and when."),
    "Server": ("healthz readyz docs openapi.json", "The server itself."),
}
TAG_OF = {word: tag for tag, (words, _) in TAGS.items() for word in words.split()} | {"": "Server"}

# Status: its name among the components, what it means, and an example.
ERRORS: dict[int, tuple[str, str, JSON]] = {
    400: (
        "BadRequest",
        "Malformed JSON or multipart.",
        {"msg": "The body is not JSON: trailing comma at line 1 column 9."},
    ),
    401: (
        "Unauthorized",
        "No token, or one that is wrong, expired or ended; or wrong credentials.",
        {"msg": "This token has expired. Refresh it or sign in again."},
    ),
    403: ("Forbidden", "Not allowed to this caller.", {"msg": "Only an administrator can do this."}),
    404: ("NotFound", "There is no such record, or it is archived.", {"msg": "There is no patient 7."}),
    409: (
        "Conflict",
        "It contradicts what is stored; with `Retry-After`, only at this moment: try again.",
        {"msg": "This email is taken.", "errors": {"email": ["Another account has this email."]}},
    ),
    412: (
        "PreconditionFailed",
        "The record has moved on since `If-Match`.",
        {"msg": "The record has changed: it is at version 5 now. Read it again."},
    ),
    413: ("TooLarge", "The body or a file is too large.", {"msg": "scan.png is larger than 20 MB."}),
    415: (
        "UnsupportedMediaType",
        "Neither JSON nor, where files are taken, multipart.",
        {"msg": "Send JSON, with the header Content-Type: application/json."},
    ),
    422: (
        "Invalid",
        "Understood, but not valid.",
        {"msg": "patient_id: There is no patient 7.", "errors": {"patient_id": ["There is no patient 7."]}},
    ),
    429: (
        "TooManyRequests",
        "Too many requests or attempts from this address.",
        {"msg": "Too many attempts to sign in. Please wait 60 seconds."},
    ),
    500: (
        "InternalServerError",
        "Our fault; nothing was changed.",
        {"msg": "Something went wrong on our side. Request id: 9f8e7d6c5b4a3921"},
    ),
    502: (
        "ImageStoreFailed",
        "The image store failed; nothing was saved.",
        {"msg": "The image store failed. Nothing was saved; please try again."},
    ),
    503: (
        "Unavailable",
        "The database is away.",
        {"msg": "The database cannot be reached, or did not answer in time. Please try again."},
    ),
}

# Errors that no rule below gives.
ALSO: dict[str, set[int]] = {
    "signup": {401, 403, 409},  # an administrator's token may come with it
    "login": {401, 403, 429},
    "refresh": {401},
    "change_my_password": {409, 429},
    "media_file": {403, 404},
}
WITHOUT_DATABASE = {"index", "healthz", "docs", "openapi_document"}

_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
HEADERS: dict[str, JSON] = {
    "ETag": {"description": "The record's version, for `If-Match`.", "schema": _TEXT, "example": '"1"'},
    "Location": {"description": "The address of what was made.", "schema": _TEXT, "example": "/patient/1"},
    "Link": {"description": 'The next page, `<…>; rel="next"`, where there is one.', "schema": _TEXT},
    "X-Total-Count": {"description": "How many there are in all, with `total=true`.", "schema": _NUMBER},
    "Retry-After": {"description": "Seconds to wait.", "schema": _NUMBER, "example": 60},
    "WWW-Authenticate": {"description": "How to sign in.", "schema": _TEXT},
    "X-Request-ID": {"description": "The request's id in the server's log.", "schema": _TEXT},
}
ALWAYS_SENT = {"ETag", "Location", "Retry-After", "WWW-Authenticate", "X-Request-ID"}
SENT_WITH = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}

PARAMETERS: dict[str, JSON] = {
    "If-Match": {
        "name": "If-Match",
        "in": "header",
        "description": 'The `ETag` that was read, `"1"` say: refused with 412 when the record has moved on since.',
        "schema": _TEXT,
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A name of your own for this request, a UUID say: sent again within a day it creates nothing.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
}


def _ref(kind: str, name: str) -> JSON:
    return {"$ref": f"#/components/{kind}/{name}"}


def _query(name: str, about: str) -> JSON:
    return {"name": name, "in": "query", "required": True, "description": about, "schema": _TEXT}


def _bytes(media_type: str) -> JSON:
    return {media_type: {"schema": {"type": "string", "format": "binary"}}}


# What views without a contract answer.
PLAIN: dict[str, JSON] = {
    "docs": {"responses": {"200": {"description": "The page.", "content": {"text/html": {"schema": _TEXT}}}}},
    "openapi_document": {
        "responses": {
            "200": {"description": "The document.", "content": {"application/json": {"schema": {"type": "object"}}}}
        }
    },
    "media_file": {
        "parameters": [
            _query("reader", "Whom the link was made for."),
            _query("expires", "Until when it is good, in seconds since 1970."),
            _query("signature", "What makes it a link of ours."),
        ],
        "responses": {
            "200": {"description": "The image.", "content": _bytes("image/*")},
            "304": {"description": "The image is the one that `If-None-Match` names."},
        },
    },
}
REDIRECTS = {"index": "A browser is sent to the interactive page."}

WHO = {"anyone": "Anyone.", "signed in": "Any signed-in user.", "admin": "Administrators."}
WHO_OWNS = "Administrators, and doctors for what is their own."
OWNED = {"Staff", "Appointments", "Reports"}


@dataclass(frozen=True)
class Route:
    """One method at one address, and what follows from its view."""

    rule: Rule
    method: str
    view: View
    who: str
    limited: bool

    @property
    def name(self) -> str:
        return self.view.__name__

    @property
    def path(self) -> str:
        return re.sub(r"<(?:[^<>:]+:)?([^<>]+)>", r"{\1}", self.rule.rule)

    @cached_property
    def contract(self) -> Contract | None:
        return getattr(self.view, "contract", None)

    @property
    def tag(self) -> str:
        """By the first word of the path. Raises KeyError for a new one: name it in `TAGS`."""
        return TAG_OF[self.rule.rule.split("/")[1]]

    @property
    def writes(self) -> bool:
        """Whether it changes a record."""
        return self.method != "GET" and self.tag not in ("Accounts", "Server")

    @property
    def by_owner(self) -> bool:
        """Whether a doctor may do it with their own records alone."""
        changes = self.writes or self.rule.rule.endswith("/history")
        return changes and self.tag in OWNED and self.who != "admin"

    @property
    def body(self) -> type[BaseModel] | None:
        return next((m for n, m in self.contract.takes.items() if n != "query"), None) if self.contract else None

    @property
    def query(self) -> type[BaseModel] | None:
        return self.contract.takes.get("query") if self.contract else None

    @property
    def files(self) -> bool:
        return bool(self.contract and self.contract.files)

    @property
    def creates(self) -> bool:
        return bool(self.contract and self.contract.status == 201)

    @property
    def takes_if_match(self) -> bool:
        return self.writes and self.method in ("PATCH", "DELETE")

    @property
    def takes_idempotency_key(self) -> bool:
        return self.writes and self.creates

    @property
    def errors(self) -> set[int]:
        rules = {
            (401,): self.who != "anyone",
            (403,): self.who == "admin" or self.by_owner,
            (404,): "{" in self.path,
            (409,): self.writes,
            (412,): self.takes_if_match,
            (400, 413, 415, 422): self.body is not None,
            (422,): self.query is not None,
            (429,): self.limited,
            (502,): self.files,
            (503,): self.name not in WITHOUT_DATABASE,
        }
        return {500, *ALSO.get(self.name, ())}.union(*(codes for codes, given in rules.items() if given))

    @property
    def security(self) -> list[JSON]:
        access: JSON = {"access_token": []}
        return {"refresh": [{"refresh_token": []}], "signup": [{}, access]}.get(
            self.name, [] if self.who == "anyone" else [access]
        )


class _Untitled(GenerateJsonSchema):
    """Fields in our order, without a title to each that says its name once more."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def sort(self, value: JSON, parent_key: str | None = None) -> JSON:
        return value


def _standard(schema: Any) -> Any:
    """With JSON Schema's own words for the bounds that pydantic leaves in its own, where a validator comes first."""
    if isinstance(schema, list):
        return [_standard(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    words = {"ge": "minimum", "le": "maximum"} if schema.get("type") == "integer" else {}
    return {words.get(name, name): _standard(part) for name, part in schema.items()}


class Models:
    """Each model's JSON schema: a reference into `definitions`, or what stands for a list of them."""

    def __init__(self, routes: list[Route]) -> None:
        taken = [model for r in routes if r.contract for model in r.contract.takes.values()]
        given = [r.contract.answer for r in routes if r.contract]
        adapters: list[Any] = [(model, "validation", TypeAdapter(model)) for model in taken]
        adapters += [(str(answer), "serialization", TypeAdapter(answer)) for answer in given]
        found, rest = TypeAdapter.json_schemas(
            adapters, ref_template="#/components/schemas/{model}", schema_generator=_Untitled
        )
        self._found: Mapping[Any, JSON] = found
        self.definitions: dict[str, JSON] = _standard(dict(sorted(rest.get("$defs", {}).items())))

    def taken(self, model: type[BaseModel]) -> JSON:
        return self._found[model, "validation"]

    def given(self, answer: Any) -> JSON:
        return self._found[str(answer), "serialization"]

    def components(self) -> dict[str, JSON]:
        """What the document refers to: a query string's model is spread over the parameters."""
        queries = {name for name in self.definitions if name.endswith("Query")}
        return {name: schema for name, schema in sorted(self.definitions.items()) if name not in queries}

    def named(self, reference: JSON) -> JSON:
        """The schema that a reference stands for; empty where it is none."""
        return self.definitions.get(reference.get("$ref", "").rpartition("/")[2], {})


def _parameters(route: Route, models: Models) -> list[JSON]:
    found: list[JSON] = []
    for name in sorted(route.rule.arguments):
        kind: JSON = {"schema": _TEXT}
        if f"<id:{name}>" in route.rule.rule:
            kind = {"schema": {"type": "integer", "minimum": 1, "maximum": LARGEST_ID}, "example": 1}
        found.append({"name": name, "in": "path", "required": True, **kind})
    if route.query:
        query = models.named(models.taken(route.query))
        for name, field in query["properties"].items():  # without examples: Swagger UI would send them
            field = _without_null(field)
            parameter = {"name": name, "in": "query", "required": name in query.get("required", ()), "schema": field}
            if "description" in field:
                parameter["description"] = field["description"]
            found.append(parameter)
    found += [_ref("parameters", "If-Match")] * route.takes_if_match
    found += [_ref("parameters", "Idempotency-Key")] * route.takes_idempotency_key
    return found


def _without_null(field: JSON) -> JSON:
    """The field as a form or a query string has it, which know no null."""
    if field.get("anyOf", [None])[-1] != {"type": "null"}:
        return field
    rest = {key: value for key, value in field.items() if key not in ("anyOf", "default")}
    return {**field["anyOf"][0], **rest}


def _body(route: Route, model: type[BaseModel], models: Models) -> JSON:
    content: JSON = {}
    if route.files:
        fields = models.named(models.taken(model))
        images = {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "maxItems": MOST_FILES,
            "description": "One or more pictures, each under this name.",
        }
        texts = {name: _without_null(field) for name, field in fields["properties"].items()}
        if route.creates:  # where a field has no example Swagger UI leaves it blank, as it should be in a change
            for name, example in fields["examples"][0].items():
                texts[name] = {**texts[name], "examples": [example]}
        form = {**fields, "title": f"{model.__name__}Form", "properties": {**texts, "images": images}}
        if route.creates:  # no report without an image
            images["minItems"] = 1
            form["required"] = [*fields.get("required", []), "images"]
        models.definitions[form["title"]] = form
        encoding = {"images": {"contentType": ", ".join(f"image/{kind}" for kind in PICTURES)}}
        content["multipart/form-data"] = {"schema": _ref("schemas", form["title"]), "encoding": encoding}
    if not (route.files and route.creates):
        content["application/json"] = {"schema": models.taken(model)}
    return {"required": True, "content": content}


def _header(name: str) -> JSON:
    return _ref("headers", name)


def _answer(route: Route, contract: Contract, models: Models) -> JSON:
    """What a route answers when all is well."""
    schema = models.given(contract.answer)
    names = ["X-Request-ID"]
    names += ["Location"] * route.creates
    if {"version", "updated_at"} <= models.named(schema).get("properties", {}).keys():
        names.append("ETag")
    asked = route.query.model_fields if route.query else {}
    names += ["Link"] * ("limit" in asked) + ["X-Total-Count"] * ("total" in asked)
    return {
        "description": {201: "Made."}.get(contract.status, "Done." if route.method != "GET" else "Here it is."),
        "headers": {name: _header(name) for name in names},
        "content": {"application/json": {"schema": schema}},
    }


def _operation(route: Route, models: Models) -> JSON:
    summary, _, more = (inspect.getdoc(route.view) or route.name).partition("\n")
    plain = PLAIN.get(route.name, {})
    who = WHO_OWNS if route.by_owner else WHO[route.who]
    operation: JSON = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": summary.removesuffix("."),
        "description": "\n\n".join(filter(None, (more.strip(), f"Who: {who[0].lower()}{who[1:]}"))),
        "security": route.security,
        "parameters": [*_parameters(route, models), *plain.get("parameters", [])],
    }
    named = {"headers": {"X-Request-ID": _header("X-Request-ID")}}
    responses = {code: {**answer, **named} for code, answer in plain.get("responses", {}).items()}
    if route.contract:
        responses[str(route.contract.status)] = _answer(route, route.contract, models)
    if route.body:
        operation["requestBody"] = _body(route, route.body, models)
    if route.name in REDIRECTS:
        responses["302"] = {"description": REDIRECTS[route.name], "headers": {"Location": _header("Location")}}
    responses |= {str(code): _ref("responses", ERRORS[code][0]) for code in sorted(route.errors)}
    operation["responses"] = dict(sorted(responses.items()))
    return operation


def _failure(code: int) -> JSON:
    _, about, example = ERRORS[code]
    names = ["X-Request-ID", *([SENT_WITH[code]] if code in SENT_WITH else [])]
    return {
        "description": about,
        "headers": {name: _header(name) for name in names},
        "content": {"application/json": {"schema": _ref("schemas", "Error"), "example": example}},
    }


ERROR_SCHEMA: JSON = {
    "type": "object",
    "description": "What every failure answers.",
    "required": ["msg"],
    "properties": {
        "msg": {"type": "string", "description": "A sentence for a person."},
        "errors": {
            "type": "object",
            "description": "What is wrong, by field; only where a field is at fault.",
            "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        },
    },
    "examples": [ERRORS[422][2]],
}


def _bearer(about: str) -> JSON:
    return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": about}


def build(app: Flask, version: str, policy: Mapping[str, str], is_limited: Callable[[View], bool]) -> JSON:
    """The document of this application. `policy` says who may call each view: anyone, signed in, or admin."""
    routes = [
        Route(rule, method, view, policy[view.__name__], is_limited(view))
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for view in [app.view_functions[rule.endpoint]]
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]
    models = Models(routes)
    paths: dict[str, JSON] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, models)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Hosi Server",
            "version": version,
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": about} for tag, (_, about) in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR_SCHEMA, **models.components()},
            "responses": {name: _failure(code) for code, (name, _, _) in ERRORS.items()},
            "parameters": PARAMETERS,
            "headers": {name: {**header, "required": name in ALWAYS_SENT} for name, header in HEADERS.items()},
            "securitySchemes": {
                "access_token": _bearer("`access_token` of the answer to `POST /login`; good for 30 minutes."),
                "refresh_token": _bearer("`refresh_token` of the same answer, for `POST /refresh` alone; good once."),
            },
        },
    }


class Document:
    """The document of one application, built when it is first asked for, and once."""

    def __init__(self, make: Callable[[], JSON]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._text = ""

    @property
    def text(self) -> str:
        with self._lock:
            self._text = self._text or json.dumps(self._make(), ensure_ascii=False)
            return self._text


def init_app(app: Flask, version: str, policy: Mapping[str, str], is_limited: Callable[[View], bool]) -> None:
    app.extensions["openapi"] = Document(lambda: build(app, version, policy, is_limited))
