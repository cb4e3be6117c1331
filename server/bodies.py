"""Reads and validates the input of a request: JSON, a form, a query string. What is too large is refused unread.

The limit of a body follows from the fields of its model. A stranger's request must cost little: the parsers below take
microseconds for each value, and pydantic describes each of its faults.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, get_origin
from urllib.parse import unquote_plus

from flask import request
from pydantic import BaseModel, ValidationError

from server import errors, multipart, strict_json

PUBLIC_LIMIT = 16 * 1024  # bytes of a body that anybody may send
LONGEST_CHARACTER = 12  # bytes of a character in JSON, as in "\\ud83d\\ude00"
SLACK = 4 * 1024  # bytes, for blanks between the fields
MOST_VALUES = 1_000  # in a body of nested lists and objects; and one more for each `BYTES_OF_A_VALUE` bytes
BYTES_OF_A_VALUE = 100
MOST_PARAMETERS = 400  # of a query string
UNSIZED = 4_000  # characters of a text without a limit, and of a field that the server owns
PLAIN = 100  # characters of a number, a word of a list, a date


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a body or query string of a model looks like."""

    names: frozenset[str]  # also those of fields that are ignored
    lists: frozenset[str]  # fields that a query string may repeat
    limit: int  # bytes of a body that holds every field at its full length


@cache
def _shape(model: type[BaseModel]) -> _Shape:
    schema = model.model_json_schema()
    limit = SLACK + LONGEST_CHARACTER * _characters(schema, schema.get("$defs", {}))
    lists = frozenset(name for name, field in model.model_fields.items() if get_origin(field.annotation) is list)
    return _Shape(frozenset(schema.get("properties", {})), lists, max(limit, PUBLIC_LIMIT))


def _characters(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> int:
    """Return how many characters a value of this JSON schema has at most, roughly."""
    if "$ref" in schema:
        return _characters(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return max(_characters(option, definitions) for option in schema["anyOf"])
    if "properties" in schema:
        return sum(len(name) + 10 + _characters(value, definitions) for name, value in schema["properties"].items())
    if schema.get("type") == "array":
        return int(schema.get("maxItems", PLAIN)) * (2 + _characters(schema["items"], definitions))
    if {"enum", "const", "format"} & schema.keys() or schema.get("type") in ("integer", "number", "boolean", "null"):
        return int(schema.get("maxLength", PLAIN))
    return int(schema.get("maxLength", UNSIZED))


def _body(limit: int) -> bytes:
    """Return the body. Raises `TooLarge`, before it is read where its length is known."""
    request.max_content_length = limit + 1  # Werkzeug cuts a body in chunks off there
    if (request.content_length or 0) > limit or len(body := request.get_data()) > limit:
        raise errors.TooLarge(f"The body is larger than the {limit:,} bytes that are taken here.")
    return body


def _parse_json(model: type[BaseModel], limit: int | None) -> BaseModel:
    if not request.is_json:
        raise errors.UnsupportedMediaType("Send JSON, with the header Content-Type: application/json.")
    shape = _shape(model)
    body = _body(limit or shape.limit)
    _refuse_many_values(body, shape)
    strict_json.check(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False)
        if found[0]["type"] == "json_invalid":
            raise errors.BadRequest(f"The body is not JSON: {found[0]['ctx']['error']}.") from None
        raise errors.Invalid(errors.field_errors(found)) from None


def _refuse_many_values(body: bytes, shape: _Shape) -> None:
    """Raise `Invalid` for an object of far more fields than a record has, `BadRequest` for as many nested values.

    Counts the signs between the strings, in a hundredth of the time that a parser takes: up to 3 µs for each value.
    """
    if len(body) <= 2 * MOST_VALUES:  # a value and its comma
        return
    parts = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
    outside = b"".join(parts[::2])
    values = outside.count(b",") + outside.count(b"[") + outside.count(b"{")
    if values <= MOST_VALUES + len(body) // BYTES_OF_A_VALUE:
        return
    if b"[" in outside or outside.count(b"{") > 1:
        raise errors.BadRequest(f"The body is not JSON that this server takes: it has {values:,} values.")
    keys = (key for key, after in zip(parts[1::2], parts[2::2], strict=False) if after.lstrip().startswith(b":"))
    raise _unknown((key.decode(errors="replace") for key in keys), outside.count(b":"), shape)


def _unknown(names: Iterator[str], total: int, shape: _Shape) -> errors.Invalid:
    """Return the error for `total` fields of which hardly any is known. It names the first."""
    unknown = islice((name for name in names if name not in shape.names), errors.MOST_FAULTS)
    faults = {name[: errors.LONGEST_NAME]: ["This field is not known here."] for name in unknown}
    return errors.Invalid(faults, total - len(faults))


def _parse_form(model: type[BaseModel], limit: int | None) -> BaseModel:
    if request.is_json:
        return _parse_json(model, limit)
    if request.mimetype != "multipart/form-data":
        raise errors.UnsupportedMediaType("Send multipart/form-data, or JSON where there is no file.")
    shape = _shape(model)
    return _validate(model, multipart.read(shape.names, limit or shape.limit))


def _parse_query(model: type[BaseModel], _limit: int | None) -> BaseModel:
    shape = _shape(model)
    _refuse_many_parameters(request.query_string, shape)
    several = {name: values for name, values in request.args.lists() if len(values) > 1 and name not in shape.lists}
    if several:
        raise errors.Invalid({name: ["Give this only once."] for name in several})
    lists = {name: request.args.getlist(name) for name in shape.lists & request.args.keys()}
    return _validate(model, {**request.args.to_dict(), **lists})


def _refuse_many_parameters(query: bytes, shape: _Shape) -> None:
    """Raise `Invalid` for a query string of so many parameters that parsing it takes milliseconds."""
    if query.count(b"&") < MOST_PARAMETERS:
        return
    names = [unquote_plus(pair.partition("=")[0]) for pair in query.decode(errors="replace").split("&")]
    if unknown := [name for name in names if name not in shape.names]:
        raise _unknown(iter(unknown), len(unknown), shape)
    raise errors.Invalid(query=f"It has {len(names):,} parameters; at most {MOST_PARAMETERS} are taken.")


def _validate(model: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    try:
        return model.model_validate(values, strict=False)  # forms and query strings have nothing but texts
    except ValidationError as error:
        raise errors.Invalid(errors.field_errors(error.errors(include_url=False))) from None


PARSERS = {"json": _parse_json, "form": _parse_form, "query": _parse_query}
