"""Reads and validates the input of a request: JSON, a form, a query string."""

from functools import cache
from typing import Any, get_origin

from flask import request
from pydantic import BaseModel, ValidationError
from werkzeug.datastructures import MultiDict

from server import errors, multipart, strict_json


def _parse_json(model: type[BaseModel]) -> BaseModel:
    if not request.is_json:
        raise errors.UnsupportedMediaType("Send JSON, with the header Content-Type: application/json.")
    body = multipart.json_body()
    strict_json.check(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False)
        if found[0]["type"] == "json_invalid":
            raise errors.BadRequest(f"The body is not JSON: {found[0]['ctx']['error']}.") from None
        raise errors.Invalid(errors.field_errors(found)) from None


def _parse_form(model: type[BaseModel]) -> BaseModel:
    if request.is_json:
        return _parse_json(model)
    if request.mimetype != "multipart/form-data":
        raise errors.UnsupportedMediaType("Send multipart/form-data, or JSON where there is no file.")
    return _validate(model, _single_values(multipart.fields()))


def _parse_query(model: type[BaseModel]) -> BaseModel:
    repeatable = _repeatable_fields(model)
    lists = {name: request.args.getlist(name) for name in repeatable & request.args.keys()}
    return _validate(model, {**_single_values(request.args, repeatable), **lists})


def _validate(model: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    try:
        return model.model_validate(values, strict=False)  # forms and query strings have nothing but texts
    except ValidationError as error:
        raise errors.Invalid(errors.field_errors(error.errors(include_url=False))) from None


@cache
def _repeatable_fields(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for name, info in model.model_fields.items() if get_origin(info.annotation) is list)


def _single_values(values: MultiDict[str, str], repeatable: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return each value by its name. Raises `Invalid` for a repeated name that is not `repeatable`."""
    repeated = [name for name in values if name not in repeatable and len(values.getlist(name)) > 1]
    if repeated:
        raise errors.Invalid({name: ["Give this only once."] for name in repeated})
    return dict(values.items())


PARSERS = {"json": _parse_json, "form": _parse_form, "query": _parse_query}
