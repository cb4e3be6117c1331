"""The errors of the API and their one JSON body.

It is `{"msg": "A sentence.", "code": "invalid", "errors": {"field": ["A sentence."]}}`.
"""

import logging
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, current_app, has_request_context, jsonify, request
from flask.json.provider import DefaultJSONProvider
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from werkzeug.exceptions import HTTPException

from server import sentences
from server.outage import outage

log = logging.getLogger("hosi")

Fields = Mapping[str, list[str]]
RecordId = tuple[Any, int]  # the class of a record, and its id
MOST_FAULTS = 20  # messages that an answer names
MOST_CONFLICTS = 20  # records in the way that an answer shows
LONGEST_NAME = 50  # characters of a field's name in an answer; a client may send any name
LARGEST_ANSWER = 16 * 1024  # bytes of an error's body without `current`
REQUEST_ID = "hosi.request_id"  # the key of a request's id in its environ
LONGEST_TEXT = 500  # characters of a text in `conflict`, where the body would be larger
LONGEST_TEXT_OF_MANY = 80  # the same, in `conflicts`


class Code(StrEnum):
    """The kinds of error, for programs. docs/errors.md says when each comes."""

    MALFORMED = "malformed"
    SIGNED_OUT = "signed_out"
    WRONG_CREDENTIALS = "wrong_credentials"
    NOT_ALLOWED = "not_allowed"
    INACTIVE = "inactive"
    NOT_FOUND = "not_found"
    WRONG_METHOD = "wrong_method"
    CONFLICT = "conflict"
    EMAIL_TAKEN = "email_taken"
    SLOT_TAKEN = "slot_taken"
    OFF_HOURS = "off_hours"
    ABSENT = "absent"
    DOCTOR_INACTIVE = "doctor_inactive"
    DECEASED = "deceased"
    ARCHIVED = "archived"
    HAS_APPOINTMENTS = "has_appointments"
    LAST_ADMIN = "last_admin"
    BUSY = "busy"
    STALE = "stale"
    TOO_LARGE = "too_large"
    WRONG_TYPE = "wrong_type"
    INVALID = "invalid"
    TOO_MANY_REQUESTS = "too_many_requests"
    LOCKED = "locked"
    FAILED = "failed"
    STORE_FAILED = "store_failed"
    UNAVAILABLE = "unavailable"


class APIError(Exception):
    """An error with its HTTP status and JSON body. Each subclass names a status and its usual code.

    `conflict` and `current` name a record that the answer shows: the one in the way, or the one that has changed. Of
    `conflicts`, all records in the way, the answer shows the first and counts all.
    """

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    code: Code = Code.FAILED

    def __init__(
        self,
        msg: str,
        errors: Fields | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        code: Code | None = None,
        conflict: RecordId | None = None,
        conflicts: Sequence[RecordId] = (),
        current: RecordId | None = None,
    ) -> None:
        super().__init__(msg)
        self.msg = msg
        self.errors = errors
        self.headers = dict(headers or {})
        self.code = code or self.code
        self.conflict, self.conflicts, self.current = conflict, conflicts, current


class BadRequest(APIError):
    status = HTTPStatus.BAD_REQUEST
    code = Code.MALFORMED


class Unauthorized(APIError):
    status = HTTPStatus.UNAUTHORIZED
    code = Code.SIGNED_OUT

    def __init__(self, msg: str, code: Code | None = None) -> None:
        super().__init__(msg, headers={"WWW-Authenticate": 'Bearer realm="Hosi Server"'}, code=code)


class Forbidden(APIError):
    status = HTTPStatus.FORBIDDEN
    code = Code.NOT_ALLOWED


class NotFound(APIError):
    """There is no such record. `more` are further parts of the body: where the record is now, for example."""

    status = HTTPStatus.NOT_FOUND
    code = Code.NOT_FOUND

    def __init__(self, msg: str, more: Mapping[str, Any] | None = None) -> None:
        super().__init__(msg)
        self.more = more or {}


class Conflict(APIError):
    status = HTTPStatus.CONFLICT
    code = Code.CONFLICT


class PreconditionFailed(APIError):
    status = HTTPStatus.PRECONDITION_FAILED
    code = Code.STALE


class TooLarge(APIError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = Code.TOO_LARGE


class UnsupportedMediaType(APIError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = Code.WRONG_TYPE


class Invalid(APIError):
    """A request that is well-formed but not valid: `Invalid(patient_id="There is no patient 7.")`.

    In a sentence, `{field}` becomes the field's label: "first name". The answer names the first `MOST_FAULTS` faults
    and counts the rest. `unnamed` faults are counted with these.
    """

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = Code.INVALID

    def __init__(self, errors: Fields | None = None, unnamed: int = 0, **field: str) -> None:
        faults = [(name, text) for name, texts in (errors or {}).items() for text in texts]
        faults += field.items()
        named: dict[str, list[str]] = {}
        for name, text in faults[:MOST_FAULTS]:
            named.setdefault(printable(name), []).append(sentences.about(name, text))
        msg = " ".join(dict.fromkeys(text for texts in named.values() for text in texts))
        if more := len(faults[MOST_FAULTS:]) + unnamed:
            msg += f" And {more:,} more."
        super().__init__(msg, named)


def printable(name: str) -> str:
    """Return the beginning of a name that a client chose, for an answer. JSON takes six bytes for a control sign."""
    return re.sub("[\0-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", name[:LONGEST_NAME])


def not_known(name: str) -> str:
    """Return the sentence that refuses a field by its name."""
    return f'There is no field "{printable(name)}" here.'


class TooManyRequests(APIError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    code = Code.TOO_MANY_REQUESTS


class ImageStoreFailed(APIError):
    status = HTTPStatus.BAD_GATEWAY
    code = Code.STORE_FAILED


class Unavailable(APIError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = Code.UNAVAILABLE

    def __init__(self, msg: str) -> None:
        super().__init__(msg, headers={"Retry-After": "5"})


def busy(msg: str) -> Conflict:
    """Return the answer to a request that another one hinders at this moment."""
    return Conflict(msg, headers={"Retry-After": "2"}, code=Code.BUSY)


def no_room(error: OSError) -> Unavailable:
    """Return the answer to a request whose temporary files cannot be written, and log why."""
    log.error("a temporary file cannot be written: %s", error)
    return Unavailable("This server has no room for the files at the moment. Please try again.")


# What a violation of each constraint says to a person; `explain` fills it, beside each table.
_broken: dict[str, APIError] = {}
_drawn_again: set[str] = set()


def explain(constraint: str, error: APIError) -> None:
    """Answer a violation of `constraint` with `error`."""
    _broken[constraint] = error


def draw_again(constraint: str) -> None:
    """Try a transaction again that violates `constraint`, because another try draws another random value."""
    _drawn_again.add(constraint)


def constraint_of(error: DBAPIError) -> str:
    """Return the name of the violated constraint, or "". Of a unique constraint, SQLite names the columns."""
    named = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    if named:
        return str(named)
    text = str(error.orig)
    if match := re.search(r"UNIQUE constraint failed: (\w+)\.(\w+)", text):
        return f"uq_{match[1]}_{match[2]}"
    match = re.search(r"CHECK constraint failed: (\w+)", text) or re.fullmatch(r"(ex_\w+)", text)
    return match[1] if match else ""


def _sqlite_code(error: Exception) -> int | None:
    """Return SQLite's primary result code, the low byte of the extended one. https://sqlite.org/rescode.html"""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


READ_ONLY = "25006"  # SQLSTATE read_only_sql_transaction: a standby, or default_transaction_read_only
SAYS_READ_ONLY = "The database can only be read at this moment. Please try again."


def _is_read_only(error: Exception) -> bool:
    """Return whether the database refused a write because it can only be read."""
    pgcode = getattr(getattr(error, "orig", None), "pgcode", None)
    return pgcode == READ_ONLY or _sqlite_code(error) == sqlite3.SQLITE_READONLY


def is_outage(error: Exception) -> bool:
    """Return whether the database is away or too slow. SQLite raises OperationalError for wrong SQL, too."""
    away = isinstance(error, OperationalError | InterfaceError | PoolTimeout)
    return away and _sqlite_code(error) != sqlite3.SQLITE_ERROR


# SQLSTATE of deadlock, serialisation failure and lock not available: the transaction can be tried again.
_PASSING = {"40P01", "40001", "55P03"}


def is_passing(error: Exception) -> bool:
    """Return whether the database refused because of a concurrent transaction."""
    if isinstance(error, StaleDataError):
        return True
    return isinstance(error, DBAPIError) and getattr(error.orig, "pgcode", None) in _PASSING


def is_temporary(error: Exception) -> bool:
    """Return whether the same request may succeed later: the database is away, read-only, or in use."""
    return is_passing(error) or _is_read_only(error) or is_outage(error)


def is_worth_another_try(error: Exception) -> bool:
    """Return whether the same transaction may succeed when it is tried again."""
    return is_passing(error) or (isinstance(error, IntegrityError) and constraint_of(error) in _drawn_again)


def from_database(error: Exception) -> APIError | None:
    """Return what an error of the database means to the client; None if the error is a fault of ours."""
    if is_passing(error):
        return busy("Others are changing this at this moment. Please try again.")
    if isinstance(error, IntegrityError):
        known = _broken.get(constraint_of(error))
        return known or Conflict("This contradicts what is stored: another record refers to it or has the same value.")
    if isinstance(error, DataError):
        return Invalid(body="A value is out of the range that can be stored.")
    if _is_read_only(error):
        outage.failed(error)
        return Unavailable(SAYS_READ_ONLY)
    if is_outage(error):
        outage.failed(error)
        return Unavailable("The database cannot be reached, or did not answer in time. Please try again.")
    return None


def field_errors(found: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return pydantic's faults by field, in our own sentences, without the values: a value may be a password."""
    fields: dict[str, list[str]] = {}
    for one in found:
        # a number is a position in a list
        name = ".".join(part for part in one["loc"] if isinstance(part, str)) or "body"
        text = not_known(name) if one["type"] == "extra_forbidden" else sentences.of_fault(one)
        fields.setdefault(name, []).append(text)
    return fields


ShowRecord = Callable[[Any, int], dict[str, Any] | None]


def show_records_by(app: Flask, show: ShowRecord) -> None:
    """Show the record of an error's `conflict` or `current` by this function of its class and id."""
    app.extensions["show_record"] = show


def respond(error: APIError) -> Response:
    """Return the answer of an error. Its transaction has ended: `conflict` and `current` are read now."""
    body: dict[str, Any] = {"msg": error.msg, "code": error.code}
    if error.errors:
        body["errors"] = error.errors
    show: ShowRecord = current_app.extensions.get("show_record", lambda *_: None)
    if error.conflict and (record := show(*error.conflict)):
        fits = len(jsonify({**body, "conflict": record}).data) <= LARGEST_ANSWER
        body["conflict"] = record if fits else _shortened(record)
    if error.conflicts:
        records = [record for one in error.conflicts[:MOST_CONFLICTS] if (record := show(*one))]
        body |= {"conflicts": records, "total": len(error.conflicts)}
        if len(jsonify(body).data) > LARGEST_ANSWER:
            body["conflicts"] = [_shortened(record, LONGEST_TEXT_OF_MANY) for record in records]
        while len(jsonify(body).data) > LARGEST_ANSWER:  # long names
            body["conflicts"].pop()
    if isinstance(error, NotFound):
        body |= error.more
    if error.current and (record := show(*error.current)):
        body["current"] = record
    response = jsonify(body)
    response.status_code = error.status
    response.headers.update(error.headers)
    return response


def _shortened(record: dict[str, Any], longest: int = LONGEST_TEXT) -> dict[str, Any]:
    """Return the fields with long texts cut."""
    return {
        name: f"{value[: longest - 1]}…" if isinstance(value, str) and len(value) > longest else value
        for name, value in record.items()
    }


def _code_of(status: HTTPStatus) -> Code:
    """Return the code of an error that Werkzeug raises."""
    usual = {kind.status: kind.code for kind in APIError.__subclasses__()}
    usual[HTTPStatus.METHOD_NOT_ALLOWED] = Code.WRONG_METHOD
    return usual.get(status, Code.FAILED if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Code.MALFORMED)


def _on_http(error: HTTPException) -> Any:
    """Answer an error that Werkzeug raises with our JSON body."""
    if error.code is None or error.code < 400:
        return error.get_response()  # a redirect
    says = {
        404: "There is nothing at this address. GET / lists where to look.",
        405: f"The method {printable(request.method)} is not possible here.",
        413: "The request is larger than this server takes.",
    }
    status = HTTPStatus(error.code)
    text = says.get(error.code) or error.description or f"{status.phrase}."
    failure = APIError(text, code=_code_of(status))
    failure.status = status
    failure.headers = {k: v for k, v in error.get_headers() if k not in ("Content-Type", "Content-Length")}
    return respond(failure)


def _on_exception(error: Exception) -> Response:
    if known := from_database(error):
        return respond(known)
    log.error("request %s failed", request_id(), exc_info=error)
    return respond(APIError(f"Something went wrong on our side. The id of the request is {request_id()}."))


def request_id() -> str | None:
    """Return the id of the current request, which server/web.py gives it; None in a `flask` command."""
    return request.environ.get(REQUEST_ID) if has_request_context() else None


def init_app(app: Flask) -> None:
    if isinstance(app.json, DefaultJSONProvider):
        app.json.sort_keys = False  # the body of an error begins with its sentence
        app.json.ensure_ascii = False  # a name in UTF-8 takes a third of what it takes as \ud83d\ude00
    app.register_error_handler(APIError, respond)
    app.register_error_handler(HTTPException, _on_http)
    app.register_error_handler(Exception, _on_exception)
