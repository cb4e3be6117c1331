"""Checks every answer of the suite against the OpenAPI document: its status, its headers, its body."""

import json
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from flask import Flask
from jsonschema_rs import Draft202012Validator
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

MOST_ITEMS = 20  # of a long list the first and the last so many are looked at

_documents: WeakKeyDictionary[Flask, Any] = WeakKeyDictionary()


def document(app: Flask) -> Any:
    """The application's OpenAPI document. Applications with the same text share one object."""
    if app not in _documents:
        _documents[app] = parsed(app.test_client().get("/openapi.json").text)
    return _documents[app]


@cache
def parsed(text: str) -> Any:
    return json.loads(text)


def resolve(doc: Any, node: Any) -> Any:
    """The node itself, or what its `$ref` stands for."""
    while "$ref" in node:
        found = doc
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def operation(app: Flask, method: str, path: str) -> Any:
    """What the document says of this request; None where there is no such address or method."""
    try:
        rule, _ = app.url_map.bind("localhost").match(path, "GET" if method == "HEAD" else method, return_rule=True)
    except HTTPException:
        return None
    doc = document(app)
    view = app.view_functions[rule.endpoint].__name__
    return next((op for item in doc["paths"].values() for op in item.values() if op["operationId"] == view), None)


def check(app: Flask, response: TestResponse) -> None:
    """Fails where the document does not describe this answer."""
    request = response.request
    described = operation(app, request.method, request.path)
    if described is None or request.method in ("HEAD", "OPTIONS"):
        return
    name = f"{request.method} {request.path} answered {response.status_code}"
    doc = document(app)
    assert str(response.status_code) in described["responses"], f"{name}, which the document does not know of"
    answer = resolve(doc, described["responses"][str(response.status_code)])
    for header, about in answer.get("headers", {}).items():
        assert header in response.headers or not resolve(doc, about)["required"], f"{name} without {header}"
    content = answer.get("content", {}).get("application/json")
    if content and response.is_json:
        body = response.json
        if isinstance(body, list) and len(body) > 2 * MOST_ITEMS:
            body = body[:MOST_ITEMS] + body[-MOST_ITEMS:]
        problem = next(validator(doc, content["schema"]).iter_errors(body), None)
        assert problem is None, f"{name} with {body}: {problem.message}"


_validators: dict[tuple[int, int], Draft202012Validator] = {}


def validator(doc: Any, schema: Any) -> Draft202012Validator:
    """Compiles a schema of the document once: answers of the suite are some 30,000."""
    key = id(doc), id(schema)  # parsed() keeps both alive
    if key not in _validators:
        _validators[key] = Draft202012Validator({**schema, "components": doc["components"]})
    return _validators[key]
