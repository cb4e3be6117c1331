"""Who may do and see what: the guard of each route, and whose records a caller may change."""

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

# For `guard`. It enforces all but the owner of a record, which a view with OWNER_OR_ADMIN checks.
SIGNED_IN = Access("any signed-in user")
OWNER_OR_ADMIN = Access("administrators, and doctors for their own records", may_forbid=True)
ADMIN = Access("administrators", may_forbid=True)

REPORT_READERS = (str(Role.ADMIN), str(Role.DOCTOR))

# The column that names the owner. A doctor changes only their own records; every doctor changes patients.
OWNER: dict[type[Record], str | None] = {User: "id", Patient: None, Appointment: "user_id", Report: "user_id"}

# The fields that only an administrator may change. The same value sent back is no change.
ADMIN_FIELDS: dict[type[Record], set[str]] = {User: {"role", "is_active"}, Appointment: {"overbooked"}}

# A change of these fields moves an appointment to another slot.
SLOT_FIELDS = ("appointment_datetime", "duration_minutes", "patient_id", "user_id")


def caller() -> Caller:
    """Return the user of this request."""
    who: Caller = g.caller
    return who


Kind = TypeVar("Kind", bound=Record)


def editable(kind: type[Kind], record_id: int, *options: Any) -> Kind:
    """Return a record that the caller may change, locked until the commit.

    Raises `NotFound`, `Forbidden`, or `PreconditionFailed` when the request's If-Match names another version.
    """
    record = models.find_for_update(kind, record_id, *options)
    _refuse_others(kind, _owner_of(record), "change")
    check_if_match(record.version)
    return record


def with_history(kind: type[Kind], record_id: int) -> Kind:
    """Return a record whose history the caller may read: a record they may change; an archived one for administrators.

    Raises `NotFound` or `Forbidden`.
    """
    record = (models.find_any if caller().is_admin else models.find)(kind, record_id)
    _refuse_others(kind, _owner_of(record), "read the history of")
    return record


def change(record: Record, changes: dict[str, Any]) -> None:
    """Change the record's fields as far as the caller may. Raises `Forbidden`, and what `record.change` raises."""
    _refuse_admin_fields(record, changes)
    moved = isinstance(record, Appointment) and any(
        field in changes and changes[field] != getattr(record, field) for field in SLOT_FIELDS
    )
    record.change(changes)
    if moved and isinstance(record, Appointment) and record.overbooked and not caller().is_admin:
        record.overbooked = False  # an administrator allowed it for another slot
    _refuse_others(type(record), _owner_of(record), "change" if record.id else "create")


def create(kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """Return a new record: the caller's own unless `fields` name another user. Raises as `change` does."""
    record = kind()
    change(record, _with_owner(fields))
    return record


def check_report(fields: dict[str, Any], report: Report | None = None) -> None:
    """Raise what `create(Report, fields)` or `change(report, fields)` would raise, and build nothing.

    A request with images asks before it sends them.
    """
    before = {"patient_id": report.patient_id, "user_id": report.user_id} if report else {}
    after: dict[str, int] = {**before, **_with_owner(fields)}
    models.patient_and_doctor(after["patient_id"], after["user_id"], *before.values())
    _refuse_others(Report, after["user_id"], "change" if report else "create")


def _with_owner(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record; where they name no user, it is the caller's."""
    return {**fields, "user_id": caller().id} if "user_id" in fields and fields["user_id"] is None else fields


def _owner_of(record: Record) -> int | None:
    column = OWNER[type(record)]
    return getattr(record, column) if column else None


def _refuse_others(kind: type[Record], owner_id: int | None, verb: str) -> None:
    """Raise `Forbidden` unless a record of this owner is one that the caller may change."""
    if caller().is_admin or OWNER[kind] is None or owner_id == caller().id:
        return
    what = "accounts" if kind is User else f"{kind.noun()}s"
    raise errors.Forbidden(f"Only an administrator can {verb} other people's {what}.")


def _refuse_admin_fields(record: Record, changes: dict[str, Any]) -> None:
    for field in ADMIN_FIELDS.get(type(record), set()) & changes.keys():
        if changes[field] != (getattr(record, field) or False) and not caller().is_admin:
            raise errors.Forbidden(f"Only an administrator can change {field}.")


def authenticate(admins_only: bool = False, signs_out: int | None = None) -> None:
    """Set the caller of this request, and have each of its transactions begin by looking at their rights again.

    `signs_out` is the user whose rights or logins the request changes; None for nobody, 0 for the caller. Of a write
    and a demotion, deactivation, archive or logout of its sender one is first, and the other sees it.
    Raises `Unauthorized` or `Forbidden`.
    """

    def refuse() -> None:
        if admins_only and not g.caller.is_admin:
            raise errors.Forbidden("Only an administrator can do this.")

    def look_again() -> None:
        g.caller = identify_again(g.caller, () if signs_out is None else (signs_out or g.caller.id,))
        refuse()

    g.caller = identify()
    refuse()
    g.begin_transaction = look_again


def guard(access: Access, signs_out: str = "", once: bool = False) -> Callable[[View], View]:
    """Require a signed-in caller and, with `ADMIN`, an administrator. Raises `Unauthorized` or `Forbidden`.

    A view with `OWNER_OR_ADMIN` checks the record's owner itself, by `editable`, `create`, `change` or `with_history`.
    `signs_out` names the user whose rights or logins the view changes: an argument of the path, or "caller".
    `once` does not look at the rights again in the transaction: of two logouts at once both succeed.
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
