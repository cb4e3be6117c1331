"""The bridge from a route's annotations to checked input and written output, and the route's one transaction.

A parameter named `json`, `form` (multipart or JSON) or `query` is read into its pydantic model, `images` is the list
of files sent; the annotation of what is returned says how it is written. Ours on purpose: the libraries for
it are slower by half or more, or echo a rejected password.
"""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from flask import Response, g, request
from pydantic import BaseModel, TypeAdapter, ValidationError
from werkzeug.datastructures import MultiDict

from server import database, errors
from server import multipart as forms

access_log = logging.getLogger("hosi.access")
View = Callable[..., Any]
Reader = Callable[[type[BaseModel]], Any]


Answer = TypeVar("Answer")


class Many(Response, Generic[Answer]):
    """The JSON of a list of `Answer`, written already: whole, or row by row as it is sent."""

    accessed = ""  # what a reader of it has seen, for the access log


@dataclass(frozen=True, slots=True)
class Contract:
    """What a route takes and gives; the OpenAPI document is made of it."""

    status: int
    answer: Any
    takes: dict[str, type[BaseModel]] = field(default_factory=dict)
    files: bool = False


def _checked(model: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    try:
        return model.model_validate(values, strict=False)  # texts are all that forms and query strings have
    except ValidationError as error:
        raise errors.Invalid(errors.field_errors(error.errors(include_url=False))) from None


def _read_json(model: type[BaseModel]) -> BaseModel:
    if not request.is_json:
        raise errors.UnsupportedMediaType("Send JSON, with the header Content-Type: application/json.")
    try:
        return model.model_validate_json(forms.json_body())
    except ValidationError as error:
        found = error.errors(include_url=False)
        if found[0]["type"] == "json_invalid":
            raise errors.BadRequest(f"The body is not JSON: {found[0]['ctx']['error']}.") from None
        raise errors.Invalid(errors.field_errors(found)) from None


def _read_form(model: type[BaseModel]) -> BaseModel:
    if request.is_json:
        return _read_json(model)
    if request.mimetype != "multipart/form-data":
        raise errors.UnsupportedMediaType("Send multipart/form-data, or JSON where there is no file.")
    return _checked(model, _once_each(forms.fields()))


@cache
def _lists(model: type[BaseModel]) -> frozenset[str]:
    """The fields that may come several times."""
    return frozenset(name for name, info in model.model_fields.items() if get_origin(info.annotation) is list)


def _read_query(model: type[BaseModel]) -> BaseModel:
    lists = _lists(model)
    several = {name: request.args.getlist(name) for name in lists & request.args.keys()}
    return _checked(model, {**_once_each(request.args, but=lists), **several})


def _once_each(values: MultiDict[str, str], but: frozenset[str] = frozenset()) -> dict[str, str]:
    """Each value by its name. Raises `Invalid` for a name that comes twice."""
    if twice := {n: ["Give this only once."] for n in values if n not in but and len(values.getlist(n)) > 1}:
        raise errors.Invalid(twice)
    return dict(values.items())


READERS: dict[str, Reader] = {"json": _read_json, "form": _read_form, "query": _read_query}


def log_access(shown: str, reader: str = "") -> None:
    """Who was shown which patient or report: a line in the log, as data protection law wants it."""
    if shown:
        access_log.info("%s: %s", reader or access(), shown)


def access() -> str:
    """Who asks for what, to be kept for `log_access` by what outlives the request's context."""
    return f"user {g.caller.id} {request.method} {request.path}"


def check_if_match(version: int) -> None:
    """Raises `PreconditionFailed` when the client has not seen this version (RFC 9110 section 13.1.1)."""
    if "If-Match" in request.headers and not request.if_match.contains(str(version)):
        raise errors.PreconditionFailed(f"The record has changed: it is at version {version} now. Read it again.")


def contract(status: int = 200, at: str = "") -> Callable[[View], View]:
    """Reads the view's input, runs it in one transaction, and writes its answer with `status`.

    `at` is the address of what was made, for the Location header, `"/patient/{id}"` say. A record's version is its
    ETag.
    """

    def decorate(view: View) -> View:
        hints = get_type_hints(view)
        takes = {name: hints[name] for name in READERS if name in hints}
        files = "images" in inspect.signature(view).parameters
        returned = hints["return"]
        if get_origin(returned) is Many:
            returned = list[get_args(returned)[0]]  # type: ignore[misc]
        writer = TypeAdapter(returned)

        @wraps(view)
        def route(**path: Any) -> Response:
            given = {name: READERS[name](model) for name, model in takes.items()}
            if files:
                given["images"] = [] if request.is_json else forms.images()
            if request.method in ("GET", "HEAD"):
                answer = view(**path, **given)
            else:
                answer = database.in_transaction(lambda: view(**path, **given))
            several = answer if isinstance(answer, list) else [answer]
            log_access(", ".join(filter(None, (getattr(one, "accessed", "") for one in several))))
            if isinstance(answer, Many):
                return answer
            response = Response(writer.dump_json(answer), status, mimetype="application/json")
            if isinstance(version := getattr(answer, "version", None), int):
                response.set_etag(str(version))
            if at:
                response.headers["Location"] = at.format(id=answer.id)
            return response

        route.contract = Contract(status, returned, takes, files)  # type: ignore[attr-defined]
        return route

    return decorate
