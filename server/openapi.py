"""The OpenAPI 3.1 document of an application, built by `create_app()` from the URL map and each view's contract.

A view says who may call it (`@guard`, `@public`), and its tag and special errors (`@contract`). A field of a model has
an example (`Field(examples=[...])`). If any of these is missing, building stops with a sentence that names the view.
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flask import Flask
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from server.errors import MOST_CONFLICTS, Code
from server.multipart import MOST_FILES
from server.routes import JSON, Route, routes
from server.web import LARGEST_ID

PICTURES = ("jpeg", "png", "webp", "gif", "tiff", "bmp")  # image types that a form takes


@dataclass(frozen=True, slots=True)
class About:
    """The title, version, description and tags of the document."""

    title: str
    version: str
    description: str
    tags: Mapping[str, str]  # tag: description, in the order of the interactive page
    shown: Mapping[str, Sequence[str]]  # the answer models of an error's `conflict` and `current`
    parts: Mapping[str, JSON]  # further parts of an error's body: name, schema


# By status: the name of the component, the description, an example.
ERRORS: dict[int, tuple[str, str, JSON]] = {
    400: (
        "BadRequest",
        "The JSON or the multipart form is malformed.",
        {"msg": "The body is not JSON: trailing comma at line 1 column 9.", "code": "malformed"},
    ),
    401: (
        "Unauthorized",
        "The token is missing, wrong, expired or revoked; or the credentials are wrong.",
        {"msg": "This token has expired. Refresh it or sign in again.", "code": "signed_out"},
    ),
    403: (
        "Forbidden",
        "The caller is not allowed to do this.",
        {"msg": "Only administrators can do this.", "code": "not_allowed"},
    ),
    404: (
        "NotFound",
        "There is no such record, or it is archived.",
        {"msg": "There is no user 7.", "code": "not_found"},
    ),
    409: (
        "Conflict",
        "The request conflicts with what is stored. With `Retry-After` the conflict is temporary: try again.",
        {
            "msg": "This email is taken.",
            "code": "email_taken",
            "errors": {"email": ["Another account has this email."]},
        },
    ),
    412: (
        "PreconditionFailed",
        "The record has changed since the version in `If-Match`.",
        {"msg": "The record has changed: it is at version 5 now. Read it again.", "code": "stale"},
    ),
    413: (
        "TooLarge",
        "The body or a file is too large.",
        {"msg": "The file scan.png is larger than 20 MB.", "code": "too_large"},
    ),
    415: (
        "UnsupportedMediaType",
        "The body is neither JSON nor, where files are taken, multipart.",
        {"msg": "Please send JSON, with the header Content-Type: application/json.", "code": "wrong_type"},
    ),
    422: (
        "Invalid",
        "The request is understood, but a value is not valid.",
        {"msg": "There is no user 7.", "code": "invalid", "errors": {"user_id": ["There is no user 7."]}},
    ),
    429: (
        "TooManyRequests",
        "This address sent too many requests or attempts to sign in.",
        {"msg": "Too many attempts to sign in. Please wait 60 seconds.", "code": "locked"},
    ),
    500: (
        "InternalServerError",
        "The server failed. Nothing was changed.",
        {"msg": "Something went wrong on our side. The id of the request is 9f8e7d6c5b4a3921.", "code": "failed"},
    ),
    502: (
        "ImageStoreFailed",
        "The image store failed. Nothing was saved.",
        {"msg": "The image store failed. Nothing was saved; please try again.", "code": "store_failed"},
    ),
    503: (
        "Unavailable",
        "The database cannot be reached.",
        {"msg": "The database cannot be reached, or did not answer in time. Please try again.", "code": "unavailable"},
    ),
}

_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
HEADERS: dict[str, JSON] = {
    "ETag": {"description": "The record's version, for `If-Match`.", "schema": _TEXT, "example": '"1"'},
    "Location": {"description": "The address of the created record.", "schema": _TEXT, "example": "/user/1"},
    "Link": {"description": 'The address of the next page, if there is one: `<…>; rel="next"`.', "schema": _TEXT},
    "X-Total-Count": {
        "description": "How many records there are on all pages. Sent with `total=true`.",
        "schema": _NUMBER,
    },
    "X-Total-Count-Estimated": {
        "description": "`true` if the total is an estimate: PostgreSQL counts 100,000 records, of a search 10,000.",
        "schema": _TEXT,
    },
    "Retry-After": {"description": "Seconds to wait before the next request.", "schema": _NUMBER, "example": 60},
    "WWW-Authenticate": {"description": "The way to sign in.", "schema": _TEXT},
    "X-Request-ID": {"description": "The request's id in the server's log.", "schema": _TEXT},
}
ALWAYS_SENT = {"ETag", "Location", "Retry-After", "WWW-Authenticate", "X-Request-ID"}
SENT_WITH = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}

PARAMETERS: dict[str, JSON] = {
    "If-Match": {
        "name": "If-Match",
        "in": "header",
        "description": 'The `ETag` that you read, such as `"1"`. If the record has changed since, the answer is 412.',
        "schema": _TEXT,
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A key of your choice, such as a UUID. A second request with it, within a day, creates nothing.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
}


def _ref(kind: str, name: str) -> JSON:
    return {"$ref": f"#/components/{kind}/{name}"}


def related_link(about: str) -> JSON:
    """Return the description of a `Link` header that names related records."""
    return {"description": f'{about}: `<…>; rel="related"`.', "required": False, "schema": _TEXT}


def version_header() -> JSON:
    """Return the description of the `ETag` of an answer that shows no version."""
    return _header("ETag")


def query_parameter(name: str, about: str) -> JSON:
    """Return the description of a query parameter that the view reads itself, without a model."""
    return {"name": name, "in": "query", "required": True, "description": about, "schema": _TEXT}


def binary(media_type: str, about: str) -> JSON:
    """Return the description of an answer that is a file."""
    return {"description": about, "content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}


class _Generator(GenerateJsonSchema):
    """Keeps the order of the fields, and leaves out titles, which only repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def sort(self, value: JSON, parent_key: str | None = None) -> JSON:
        return value


def _standard(schema: Any, enums: dict[str, JSON]) -> Any:
    """Return the schema as generators of clients understand it. Move each enum with a title into `enums`.

    After a validator, pydantic writes `ge` and `le` for `minimum` and `maximum`. Swagger UI prefills each field that
    has an example, so `Models` gives an example to each model instead.
    """
    if isinstance(schema, list):
        return [_standard(part, enums) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "enum" in schema and "title" in schema:
        words = {name: schema[name] for name in ("type", "enum")}
        enums[schema["title"]] = {**words, "examples": schema["enum"][:1]}
        rest = {name: part for name, part in schema.items() if name not in (*words, "title", "examples")}
        return {**_ref("schemas", schema["title"]), **rest}
    names = {"ge": "minimum", "le": "maximum"} if schema.get("type") == "integer" else {}
    return {names.get(name, name): _standard(part, enums) for name, part in schema.items() if name != "examples"}


def _with_defaults_told(model: JSON) -> JSON:
    """Return the model with its fields' defaults in their descriptions: many generators require what has a default."""
    fields = {}
    for name, field in model.get("properties", {}).items():
        default = field.get("default")
        told = (
            "" if default in (None, "", []) or name in model.get("required", ()) else f"By default `{_text(default)}`."
        )
        about = " ".join(filter(None, (field.get("description"), told)))
        rest = {key: value for key, value in field.items() if key not in ("default", "description")}
        fields[name] = {**rest, **({"description": about} if about else {})}
    return {**model, "properties": fields} if fields else model


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@lru_cache(maxsize=1)
def _schemas(inputs: tuple[Any, ...], answers: tuple[Any, ...]) -> tuple[Mapping[Any, JSON], Mapping[str, JSON]]:
    """Return the schemas by model, and their definitions by name.

    The applications of a process have the same models. Without the cache this is half of `create_app()`.
    """
    adapters: list[Any] = [(model, "validation", TypeAdapter(model)) for model in inputs]
    adapters += [(str(answer), "serialization", TypeAdapter(answer)) for answer in answers]
    found, rest = TypeAdapter.json_schemas(
        adapters, ref_template="#/components/schemas/{model}", schema_generator=_Generator
    )
    return found, rest.get("$defs", {})


class Models:
    """The JSON schema of each model: a reference into `definitions`, or a list of references."""

    def __init__(self, routes: list[Route]) -> None:
        inputs = [model for route in routes for model in route.contract.inputs.values()]
        answers = [route.contract.answer for route in routes if route.is_json]
        answers += [answer for route in routes for answer in route.contract.others.values()]
        self._found, self._generated = _schemas(tuple(inputs), tuple(answers))
        enums: dict[str, JSON] = {}
        self.definitions: dict[str, JSON] = {
            name: {**_with_defaults_told(_standard(schema, enums)), "examples": [self._example(schema)]}
            for name, schema in sorted(self._generated.items())
        }
        self.definitions |= enums
        for schema in self.definitions.values():
            self._describe_fields_of_the_server(schema.get("properties", {}))

    def _describe_fields_of_the_server(self, fields: dict[str, JSON]) -> None:
        """Give the types of the answer model to the fields that a change ignores: `x-answer` names the model."""
        for name, field in fields.items():
            if answer := field.pop("x-answer", None):
                fields[name] = {**self.definitions[answer]["properties"][name], **field}

    def _example(self, schema: JSON) -> JSON:
        """Return the model's own example, or an object of its fields' examples."""
        if "examples" in schema:
            own: JSON = schema["examples"][0]
            return own
        examples: JSON = {}
        for name, field in schema.get("properties", {}).items():
            if field.get("examples"):
                examples[name] = field["examples"][0]
            elif "examples" in field:
                continue  # left out on purpose
            elif "$ref" in field:
                examples[name] = self._example(self._generated[_name(field)])
            elif "$ref" in field.get("items", {}):
                examples[name] = [self._example(self._generated[_name(field["items"])])]
        return examples

    def of_input(self, model: type[BaseModel]) -> JSON:
        """Return the schema of a body or query string."""
        return self._found[model, "validation"]

    def of_answer(self, answer: Any) -> JSON:
        """Return the schema of an answer."""
        return self._found[str(answer), "serialization"]

    def resolve(self, reference: JSON) -> JSON:
        """Return the schema that a reference names, or {} for a schema that is not a reference."""
        return self.definitions.get(_name(reference), {})


def _name(reference: JSON) -> str:
    name: str = reference.get("$ref", "").rpartition("/")[2]
    return name


def _parameters(route: Route, models: Models) -> list[JSON]:
    found: list[JSON] = []
    for name in sorted(route.rule.arguments):
        kind: JSON = {"schema": _TEXT}
        if f"<id:{name}>" in route.rule.rule:
            kind = {"schema": {"type": "integer", "minimum": 1, "maximum": LARGEST_ID}, "example": 1}
        found.append({"name": name, "in": "path", "required": True, **kind})
    if route.query:
        query = models.resolve(models.of_input(route.query))
        for name, field in query["properties"].items():
            field = _without_null(field)
            parameter = {"name": name, "in": "query", "required": name in query.get("required", ()), "schema": field}
            if "description" in field:
                parameter["description"] = field["description"]
            found.append(parameter)
    found += [_ref("parameters", "If-Match")] * (412 in route.contract.errors)
    found += [_ref("parameters", "Idempotency-Key")] * route.is_idempotent
    return [*found, *route.contract.operation.get("parameters", [])]


def _without_null(field: JSON) -> JSON:
    """Return the field without null, which forms and query strings cannot send."""
    if field.get("anyOf", [None])[-1] != {"type": "null"}:
        return field
    rest = {key: value for key, value in field.items() if key not in ("anyOf", "default")}
    return {**field["anyOf"][0], **rest}


def _body(route: Route, model: type[BaseModel], models: Models) -> JSON:
    schema = models.of_input(model)
    example = {"examples": {"example": {"value": models.resolve(schema)["examples"][0]}}}
    content: JSON = {}
    if route.contract.files:
        content["multipart/form-data"] = {"schema": _form(route, model, models)}
    if not (route.contract.files and route.creates):  # generators that may choose take JSON, and send no file then
        content["application/json"] = {"schema": schema, **example}
    return {"required": True, "content": content}


def _form(route: Route, model: type[BaseModel], models: Models) -> JSON:
    """Add a form to the definitions, with the model's fields and `images`. Return a reference to it."""
    fields = models.resolve(models.of_input(model))
    images = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "maxItems": MOST_FILES,
        "description": f"Images, each under this name: {', '.join(PICTURES)}. A body without images may be JSON.",
    }
    texts = {name: _without_null(field) for name, field in fields["properties"].items() if "readOnly" not in field}
    form = {**fields, "title": f"{model.__name__}Form", "properties": {**texts, "images": images}}
    if route.creates:  # a form that changes a record has no examples: Swagger UI then leaves its fields blank
        for name, example in fields["examples"][0].items():
            texts[name] = {**texts[name], "examples": [example]}
        form |= {"properties": {**texts, "images": images}}
    models.definitions[form["title"]] = form
    return _ref("schemas", form["title"])


def _header(name: str) -> JSON:
    return _ref("headers", name)


def _answer(route: Route, models: Models) -> JSON:
    """Return the description of a successful answer in JSON."""
    schema = models.of_answer(route.contract.answer)
    names = ["X-Request-ID"]
    names += ["Location"] * route.creates
    if {"version", "updated_at"} <= models.resolve(schema).get("properties", {}).keys():
        names.append("ETag")
    parameters = route.query.model_fields if route.query else {}
    names += ["Link"] * ("limit" in parameters) + ["X-Total-Count", "X-Total-Count-Estimated"] * ("total" in parameters)
    return {
        "description": "Created." if route.creates else "OK.",
        "headers": {name: _header(name) for name in names} | route.contract.operation.get("headers", {}),
        "content": {"application/json": {"schema": schema}},
    }


def _operation(route: Route, models: Models) -> JSON:
    contract = route.contract
    summary, _, more = (inspect.getdoc(route.view) or "").partition("\n")
    operation: JSON = {
        "operationId": route.name,
        "tags": [contract.tag],
        "summary": summary.removesuffix("."),
        "description": "\n\n".join(filter(None, (more.strip(), f"Who: {route.access.who}."))),
        "security": route.security,
        "parameters": _parameters(route, models),
    }
    if route.body:
        operation["requestBody"] = _body(route, route.body, models)
    usual = {"headers": {"X-Request-ID": _header("X-Request-ID")}}
    responses = {code: {**usual, **answer} for code, answer in contract.operation.get("responses", {}).items()}
    for code, answer in contract.others.items():
        content = {"application/json": {"schema": models.of_answer(answer)}}
        responses[str(code)] = {"description": "OK.", **usual, "content": content}
    if route.is_json:
        responses[str(contract.status)] = _answer(route, models)
    responses |= {str(code): _ref("responses", ERRORS[code][0]) for code in sorted(route.errors)}
    operation["responses"] = dict(sorted(responses.items()))
    return operation


def _failure(code: int) -> JSON:
    _, about, example = ERRORS[code]
    names = ["X-Request-ID", *([SENT_WITH[code]] if code in SENT_WITH else [])]
    return {
        "description": about,
        "headers": {name: _header(name) for name in names},
        "content": {"application/json": {"schema": _ref("schemas", "Problem"), "example": example}},
    }


PROBLEM: JSON = {
    "type": "object",
    "description": "The body of every error.",
    "required": ["msg", "code"],
    "properties": {
        "msg": {"type": "string", "description": "A sentence for a person."},
        "code": {"type": "string", "description": "The kind of error, for programs.", "enum": [*map(str, Code)]},
        "errors": {
            "type": "object",
            "description": "The faults by field. Present only where a field is at fault.",
            "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        },
    },
    "examples": [ERRORS[422][2]],
}


def _problem(about: About, models: Models) -> JSON:
    """Return the schema of an error's body, with the records that it may show."""
    shown = {
        name: {
            "description": description,
            "anyOf": [_ref("schemas", answer) for answer in about.shown[name] if answer in models.definitions],
        }
        for name, description in (
            ("conflict", "The record in the way, with `slot_taken`."),
            ("current", "The record as it is now, with `stale`."),
        )
    }
    fields: JSON = {name: schema for name, schema in shown.items() if schema["anyOf"]}
    if "conflict" in fields:
        about_list = f"The records in the way of something that takes long, {MOST_CONFLICTS} at most."
        fields["conflicts"] = {
            "type": "array",
            "items": {"anyOf": shown["conflict"]["anyOf"]},
            "description": about_list,
        }
        fields["total"] = {"type": "integer", "description": "How many records are in the way. Sent with `conflicts`."}
    return {**PROBLEM, "properties": {**PROBLEM["properties"], **fields, **about.parts}}


def _bearer(about: str) -> JSON:
    return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": about}


def _used(schemas: dict[str, JSON], *users: Any) -> dict[str, JSON]:
    """Return the schemas that `users` refer to, directly or by another schema."""
    found: dict[str, JSON] = {}
    left = list(users)
    while left:
        for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(left.pop())):
            if name not in found:
                found[name] = schemas[name]
                left.append(schemas[name])
    return dict(sorted(found.items()))


def build(app: Flask, about: About) -> JSON:
    """Return the document of an application. Raises RuntimeError, as `routes` does, for a view that lacks something."""
    found = routes(app, about.tags, ERRORS.keys())
    models = Models(found)
    paths: dict[str, JSON] = {}
    for route in found:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, models)
    failures = {name: _failure(code) for code, (name, _, _) in ERRORS.items()}
    return {
        "openapi": "3.1.1",
        "info": {
            "title": about.title,
            "version": about.version,
            "description": about.description,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": app.config["PUBLIC_URL"] or "/"}],
        "tags": [{"name": tag, "description": description} for tag, description in about.tags.items()],
        "paths": paths,
        "components": {
            "schemas": _used({"Problem": _problem(about, models), **models.definitions}, paths, failures),
            "responses": failures,
            "parameters": PARAMETERS,
            "headers": {name: {**header, "required": name in ALWAYS_SENT} for name, header in HEADERS.items()},
            "securitySchemes": {
                "access_token": _bearer("The `access_token` that `POST /login` answers. It expires after 30 minutes."),
                "refresh_token": _bearer("The `refresh_token` that `POST /login` answers, for `POST /refresh` alone."),
            },
        },
    }


def text(app: Flask, about: About) -> str:
    """Return the document as JSON. Raises as `build` does."""
    return json.dumps(build(app, about), ensure_ascii=False)
