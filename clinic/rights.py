"""Says who may do what: the guard of each route, and the records and fields that a caller may change."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from flask import g

import models
from clinic.sessions import Caller, identify, identify_again
from models import Appointment, Patient, Record, Report, Role, User
from server import errors
from server.endpoint import Access, View, check_if_match, with_access
from server.endpoint import public as public
from server.sentences import label

# Arguments of `guard`. With OWNER_OR_ADMIN the view itself checks the owner of the record.
SIGNED_IN = Access("any signed-in user")
OWNER_OR_ADMIN = Access("administrators, and doctors for their own records", may_forbid=True)
ADMIN = Access("administrators", may_forbid=True)

REPORT_READERS = (str(Role.ADMIN), str(Role.DOCTOR))

# The column with the owner's id. A doctor changes only their own records. Patients have no owner.
OWNER: dict[type[Record], str | None] = {User: "id", Patient: None, Appointment: "user_id", Report: "user_id"}

# Only an administrator may change these fields. Anybody may send their present value back.
ADMIN_FIELDS: dict[type[Record], set[str]] = {User: {"role", "is_active"}, Appointment: {"overbooked"}}


def caller() -> Caller:
    """Return the user of this request."""
    who: Caller = g.caller
    return who


Kind = TypeVar("Kind", bound=Record)


def editable(kind: type[Kind], record_id: int, *options: Any) -> Kind:
    """Return a record that the caller may change, locked until the commit. `options` load its relations.

    Raises `NotFound`, `Forbidden`, or `PreconditionFailed` if the request's If-Match names another version.
    """
    record = models.find_for_update(kind, record_id, *options)
    _refuse_others(kind, _owner_of(record), "change")
    check_if_match(record.version, (kind, record_id))
    return record


def with_history(kind: type[Kind], record_id: int) -> Kind:
    """Return a record whose history the caller may read: any record that they may change.

    Only an administrator gets an archived record. Raises `NotFound` or `Forbidden`.
    """
    record = (models.find_any if caller().is_admin else models.find)(kind, record_id)
    _refuse_others(kind, _owner_of(record), "read the history of")
    return record


def change(record: Record, changes: dict[str, Any]) -> None:
    """Change the record's fields. Raises `Forbidden` if the caller may not, and the errors of `record.change`."""
    _refuse_admin_fields(record, changes)
    old_slot = record.slot if isinstance(record, Appointment) else None
    record.change(changes)
    if isinstance(record, Appointment) and record.slot != old_slot and record.overbooked and not caller().is_admin:
        record.overbooked = False  # an administrator allowed it for the old slot
    _refuse_others(type(record), _owner_of(record), "change" if record.id else "create")


def create(kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """Return a new record. Its owner is the caller, unless `fields` name another user. Raises as `change` does."""
    record = kind()
    change(record, _with_owner(fields))
    return record


def check_report(fields: dict[str, Any], report: Report | None = None) -> None:
    """Raise the errors that `create(Report, fields)` or `change(report, fields)` would raise, but change nothing.

    A request with images calls it before it uploads them.
    """
    before = {"patient_id": report.patient_id, "user_id": report.user_id} if report else {}
    after: dict[str, int] = {**before, **_with_owner(fields)}
    models.patient_and_doctor(after["patient_id"], after["user_id"], *before.values())
    _refuse_others(Report, after["user_id"], "change" if report else "create")


def _with_owner(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record, with the caller's id in place of a `user_id` that is None."""
    return {**fields, "user_id": caller().id} if "user_id" in fields and fields["user_id"] is None else fields


def _owner_of(record: Record) -> int | None:
    column = OWNER[type(record)]
    return getattr(record, column) if column else None


def _refuse_others(kind: type[Record], owner_id: int | None, verb: str) -> None:
    """Raise `Forbidden` unless the caller may change a record of this kind and owner."""
    if caller().is_admin or OWNER[kind] is None or owner_id == caller().id:
        return
    what = "accounts" if kind is User else f"{kind.noun()}s"
    raise errors.Forbidden(f"Only an administrator can {verb} other people's {what}.")


def _refuse_admin_fields(record: Record, changes: dict[str, Any]) -> None:
    for field in ADMIN_FIELDS.get(type(record), set()) & changes.keys():
        if changes[field] != (getattr(record, field) or False) and not caller().is_admin:
            raise errors.Forbidden(f"Only an administrator can change the {label(field)}.")


def authenticate(admins_only: bool = False, signs_out: int | None = None) -> None:
    """Set the caller of this request. Each of its transactions then begins by checking the caller's rights again.

    So a caller who is demoted, deactivated, archived or logged out meanwhile writes nothing any more. `signs_out` is
    the id of the user whose rights or logins the request changes; None for nobody, 0 for the caller.
    Raises `Unauthorized` or `Forbidden`.
    """

    def refuse_others() -> None:
        if admins_only and not g.caller.is_admin:
            raise errors.Forbidden("Only an administrator can do this.")

    def check_again() -> None:
        g.caller = identify_again(g.caller, () if signs_out is None else (signs_out or g.caller.id,))
        refuse_others()

    g.caller = identify()
    refuse_others()
    g.begin_transaction = check_again


def guard(access: Access, signs_out: str = "", once: bool = False) -> Callable[[View], View]:
    """Require a signed-in caller and, with `ADMIN`, an administrator. Raises `Unauthorized` or `Forbidden`.

    A view with `OWNER_OR_ADMIN` checks the record's owner itself, by `editable`, `create`, `change` or `with_history`.
    `signs_out` names the user whose rights or logins the view changes: an argument of the path, or "caller".
    `once` checks the rights only at the start, not again in the transaction: two concurrent logouts both succeed.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            authenticate(access is ADMIN, kwargs.get(signs_out, 0) if signs_out else None)
            if once:
                g.pop("begin_transaction")
            return view(*args, **kwargs)

        return with_access(guarded, access)  # type: ignore[return-value]

    return decorate
