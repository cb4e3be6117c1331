"""Reads and validates the input of a request: JSON, a form, a query string.

The fields of a model decide the size of its body. A larger body is refused before it is read. A body or query string
with far too many values is refused before it is parsed: parsing takes microseconds for each value.
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
# A body has at most MOST_VALUES values, and another for each BYTES_OF_A_VALUE bytes of it.
MOST_VALUES = 1_000
BYTES_OF_A_VALUE = 100
MOST_PARAMETERS = 400  # of a query string
UNSIZED = 4_000  # characters that we allow a text whose field has no limit
PLAIN = 100  # characters that we allow a number, an enumerated word or a date; also items of a list without a limit


@dataclass(frozen=True, slots=True)
class _Shape:
    """The fields and the size of a model's body or query string."""

    names: frozenset[str]  # of all fields, also of those that a PATCH ignores
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
    """Return the body. Raises `TooLarge`, and reads nothing of a body with too large a Content-Length."""
    request.max_content_length = limit + 1  # Werkzeug cuts off a chunked body there
    if (request.content_length or 0) > limit or len(body := request.get_data()) > limit:
        raise errors.TooLarge(f"The body is larger than the {limit:,} bytes that are taken here.")
    return body


def _parse_json(model: type[BaseModel], limit: int | None) -> BaseModel:
    if not request.is_json:
        raise errors.UnsupportedMediaType("Please send JSON, with the header Content-Type: application/json.")
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
    """Raise `Invalid` for a flat object with too many fields, and `BadRequest` for too many nested values.

    Counts commas and brackets outside of strings. Parsing would take up to 3 µs for each value, a hundred times longer.
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
    """Return the error for `total` fields, most of them unknown. It names the first of the unknown `names`."""
    unknown = islice((name for name in names if name not in shape.names), errors.MOST_FAULTS)
    faults = {name: [errors.not_known(name)] for name in unknown}
    return errors.Invalid(faults, total - len(faults))


def _parse_form(model: type[BaseModel], limit: int | None) -> BaseModel:
    if request.is_json:
        return _parse_json(model, limit)
    if request.mimetype != "multipart/form-data":
        raise errors.UnsupportedMediaType("Please send multipart/form-data, or JSON where there is no file.")
    shape = _shape(model)
    return _validate(model, multipart.read(shape.names, limit or shape.limit))


def _parse_query(model: type[BaseModel], _limit: int | None) -> BaseModel:
    shape = _shape(model)
    _refuse_many_parameters(request.query_string, shape)
    values: dict[str, list[str]] = {}
    for name, value in request.args.items(multi=True):
        values.setdefault(_plain_name(name, shape), []).append(value)
    repeated = [name for name, given in values.items() if len(given) > 1 and name not in shape.lists]
    if repeated:
        raise errors.Invalid({name: [multipart.ONLY_ONCE] for name in repeated})
    return _validate(model, {name: given if name in shape.lists else given[0] for name, given in values.items()})


def _plain_name(name: str, shape: _Shape) -> str:
    """Return the name of a parameter. Axios and PHP write `status[]` for a parameter that they repeat."""
    plain = name.removesuffix("[]")
    return plain if plain in shape.lists else name


def _refuse_many_parameters(query: bytes, shape: _Shape) -> None:
    """Raise `Invalid` for more than `MOST_PARAMETERS` parameters: parsing them would take milliseconds."""
    if query.count(b"&") < MOST_PARAMETERS:
        return
    names = [unquote_plus(pair.partition("=")[0]) for pair in query.decode(errors="replace").split("&")]
    if unknown := [name for name in names if _plain_name(name, shape) not in shape.names]:
        raise _unknown(iter(unknown), len(unknown), shape)
    raise errors.Invalid(query=f"The {{field}} has {len(names):,} parameters; at most {MOST_PARAMETERS} are taken.")


def _validate(model: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    try:
        return model.model_validate(values, strict=False)  # every value of a form or query string is a text
    except ValidationError as error:
        raise errors.Invalid(errors.field_errors(error.errors(include_url=False))) from None


PARSERS = {"json": _parse_json, "form": _parse_form, "query": _parse_query}
