"""@contract reads a view's input and writes its answer, by the view's annotations. @public lets anybody call a view.

The code is our own: libraries for this are slower by half or more, or repeat a rejected password in the error body.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from flask import Response, g, request
from pydantic import BaseModel, TypeAdapter

from server import database, errors, logs, multipart, seen
from server.bodies import PARSERS, PUBLIC_LIMIT

Answer = TypeVar("Answer")
View = TypeVar("View", bound=Callable[..., Any])


class WrittenRecord(Response, Generic[Answer]):
    """An `Answer` that the view writes itself, as JSON."""

    records_shown = ""  # for the access log


class StreamedList(Response, Generic[Answer]):
    """A JSON array of `Answer` that the view writes itself: whole, or row by row while it is sent."""

    records_shown = ""  # for the access log


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call a view. `server.openapi` reads it; the decorator that sets it enforces it."""

    who: str  # for people: "administrators"
    roles: Collection[str] = ()  # a caller with any other role is refused
    may_forbid: bool = False  # whether the view answers 403 to some signed-in callers


PUBLIC = Access("anyone")


def public(view: View) -> View:
    """Let anybody call the view."""
    return with_access(view, PUBLIC)


def with_access(view: View, access: Access) -> View:
    """Return the view, marked with who may call it. Raises RuntimeError if it is marked already."""
    if hasattr(view, "access"):
        raise RuntimeError(f"The view {view.__name__} says twice who may call it. Keep one of @guard and @public.")
    view.access = access  # type: ignore[attr-defined]
    return view


@dataclass(frozen=True, slots=True)
class Contract:
    """A view's input and output. `server.openapi` describes the route by it."""

    status: int  # of a success
    at: str  # Location of a created record, such as "/patient/{id}"
    tag: str  # of the OpenAPI document
    errors: Collection[int]  # statuses that do not follow from the rest; 412 says that the view reads If-Match
    tokens: Collection[str] | None  # that a public view reads, "" for none; a guarded view reads the access token
    uses_database: bool
    operation: Mapping[str, Any]  # parts of the OpenAPI operation that annotations cannot say
    inputs: Mapping[str, type[BaseModel]]  # the model of "json", "form" or "query"
    files: bool  # whether the view takes images
    answer: Any  # a type; `Response` where the view writes its answer itself
    others: Mapping[int, Any] = field(default_factory=dict)  # the types of other successes, which the view writes


def log_access(records_shown: str) -> None:
    """Let the access log tell, before the answer is sent, which records it shows."""
    if records_shown:
        request.environ.setdefault(seen.SHOWN, []).append(records_shown)


def access_log() -> Callable[[str], None]:
    """Return the function by which a stream writes to the access log what it is about to show."""
    sender = errors.request_id(), f"user {g.caller.id} {request.method} {request.path}"
    return lambda records_shown: logs.access.write(*sender, records_shown) if records_shown else None


def check_if_match(version: int, record: errors.RecordId | None) -> None:
    """Raise `PreconditionFailed` when If-Match names another version (RFC 9110 section 13.1.1).

    A weak tag counts, which the RFC would refuse: nginx makes our tag weak where it compresses the answer. The answer
    shows the record, if one is named.
    """
    if "If-Match" in request.headers and not request.if_match.contains_weak(str(version)):
        text = f"The record has changed: it is at version {version} now. Read it again."
        raise errors.PreconditionFailed(text, current=record)


def contract(
    status: int = 200,
    *,
    at: str = "",
    tag: str = "",
    errors: Collection[int] = (),
    tokens: Collection[str] | None = None,
    uses_database: bool = True,
    operation: Mapping[str, Any] | None = None,
    others: Mapping[int, Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Response]]:
    """Read the view's input, call the view, and write its answer. `Contract` explains the arguments.

    A parameter named `json`, `form` (multipart or JSON) or `query` is validated by its pydantic model; `images` is the
    list of files. Unless the method is GET, the view runs by `database.in_transaction`. A record's version is its ETag.
    Raises RuntimeError for a view without the type of its answer, or with its guard below the contract.
    """

    def decorate(view: Callable[..., Any]) -> Callable[..., Response]:
        terms = Contract(
            status, at, tag, errors, tokens, uses_database, operation or {}, *_annotations(view), others or {}
        )
        route = _route(view, terms)
        route.contract = terms  # type: ignore[attr-defined]
        return route

    return decorate


def _annotations(view: Callable[..., Any]) -> tuple[dict[str, type[BaseModel]], bool, Any]:
    """Return the models of the view's input, whether it takes images, and the type of its answer."""
    hints = get_type_hints(view)
    if hasattr(view, "access"):
        raise RuntimeError(f"The view {view.__name__} must have @guard or @public above @contract, not below.")
    if "return" not in hints:
        raise RuntimeError(f"The view {view.__name__} does not say what it returns: annotate it.")
    answer = hints["return"]
    if get_origin(answer) is StreamedList:
        answer = list[get_args(answer)[0]]  # type: ignore[misc]
    if Response in get_args(answer):  # the view writes some answers itself
        answer = next(kind for kind in get_args(answer) if kind is not Response)
    elif get_origin(answer) is WrittenRecord:
        [answer] = get_args(answer)
    return {name: hints[name] for name in PARSERS if name in hints}, "images" in hints, answer


def _route(view: Callable[..., Any], terms: Contract) -> Callable[..., Response]:
    write = TypeAdapter(terms.answer).dump_json if terms.answer is not Response else bytes

    @wraps(view)
    def route(**path: Any) -> Response:
        limit = PUBLIC_LIMIT if getattr(route, "access", None) is PUBLIC else None
        arguments = path | {name: PARSERS[name](model, limit) for name, model in terms.inputs.items()}
        if terms.files:
            arguments["images"] = multipart.images()
        if request.method in ("GET", "HEAD"):
            answer = view(**arguments)
        else:
            answer = database.in_transaction(lambda: view(**arguments))
        if isinstance(answer, Response):
            log_access(getattr(answer, "records_shown", ""))
            return answer
        answers = answer if isinstance(answer, list) else [answer]
        log_access(", ".join(filter(None, (getattr(item, "records_shown", "") for item in answers))))
        response = Response(write(answer), terms.status, mimetype="application/json")
        if isinstance(version := getattr(answer, "version", None), int):
            response.set_etag(str(version))
        if terms.at:
            response.headers["Location"] = terms.at.format_map({**path, "id": answer.id})
        return response

    return route
