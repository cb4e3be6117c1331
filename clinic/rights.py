"""Says who may do and see what: the guard of each route, and the records and fields that a role may change or see.

The tables below name roles. A role that a table does not name may not.
"""

from collections.abc import Callable, Collection, Iterable
from functools import cache, wraps
from typing import Any, TypeVar

from flask import g, request

import models
import schemas
from clinic.sessions import Caller, Reading, identify, identify_again
from models import Absence, Appointment, Patient, Record, Report, Role, User, Week
from server import errors, seen, sentences
from server.endpoint import Access, View, check_if_match, with_access
from server.endpoint import public as public
from server.sentences import label

CLINICIANS = (Role.ADMIN, Role.DOCTOR)

# Arguments of `guard`. With the `OWN_…` the view itself checks the owner of the record.
SIGNED_IN = Access("any signed-in user", tuple(Role))
OWN_ACCOUNT = Access("administrators, and everybody for their own account", tuple(Role), may_forbid=True)
OWN_APPOINTMENTS = Access(
    "administrators, receptionists, and doctors for their own appointments", tuple(Role), may_forbid=True
)
CLINICAL = Access("doctors and administrators", CLINICIANS, may_forbid=True)
DESK = Access("administrators, receptionists, and everybody for themselves", tuple(Role), may_forbid=True)
OWN_REPORTS = Access("administrators, and doctors for their own reports", CLINICIANS, may_forbid=True)
ADMIN = Access("administrators", (Role.ADMIN,), may_forbid=True)

# The column with the owner's id. Patients have no owner.
OWNER: dict[type[Record], str | None] = {
    User: "id",
    Week: "id",
    Absence: "user_id",
    Patient: None,
    Appointment: "user_id",
    Report: "user_id",
}

# Which records a role may create and change: any, or those whose owner is the caller.
ANY, OWN = "any", "own"
CHANGED_BY: dict[type[Record], dict[str, str]] = {
    User: {Role.ADMIN: ANY, Role.DOCTOR: OWN, Role.RECEPTIONIST: OWN},
    Week: {Role.ADMIN: ANY, Role.DOCTOR: OWN, Role.RECEPTIONIST: ANY},  # and book outside of the hours on purpose
    Absence: {Role.ADMIN: ANY, Role.DOCTOR: OWN, Role.RECEPTIONIST: ANY},
    Patient: {Role.ADMIN: ANY, Role.DOCTOR: ANY, Role.RECEPTIONIST: ANY},
    Appointment: {Role.ADMIN: ANY, Role.DOCTOR: OWN, Role.RECEPTIONIST: ANY},
    Report: {Role.ADMIN: ANY, Role.DOCTOR: OWN},
}

# Only these roles see and change these fields. In answers to all others they are null.
SEEN_BY: dict[type[Record], dict[str, Collection[str]]] = {
    Absence: {"reason": (Role.ADMIN, Role.RECEPTIONIST)},
    Patient: {"diagnosis": CLINICIANS, "doctor_summary": CLINICIANS},
}
SEEN_BY_OWNER = (Absence,)  # the owner sees all fields of these
OTHER_PEOPLES = {User: "accounts", Week: "hours"}  # in sentences; of the other kinds: "reports"

# Only an administrator may change these fields. Anybody may send their present value back.
ADMIN_FIELDS: dict[type[Record], set[str]] = {User: {"role", "is_active"}, Appointment: {"overbooked"}}

IN_WORDS: dict[str, str] = {
    Role.ADMIN: "an administrator",
    Role.DOCTOR: "a doctor",
    Role.RECEPTIONIST: "a receptionist",
}


def caller() -> Caller:
    """Return the user of this request."""
    who: Caller = g.caller
    return who


def hidden_fields(kind: type[Record], owner_id: int | None = None) -> frozenset[str]:
    """Return the fields that the caller may not see in records of this kind. Without a caller nobody sees them."""
    who: Caller | None = g.get("caller")
    if kind in SEEN_BY_OWNER and who and owner_id == who.id:
        return frozenset()
    return _hidden_from(kind, who.role if who else "")


@cache
def _hidden_from(kind: type[Record], role: str) -> frozenset[str]:
    return frozenset(name for name, roles in SEEN_BY.get(kind, {}).items() if role not in roles)


schemas.RecordOut.hide_fields_by(hidden_fields)

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
    changes = _without_hidden_fields(record, changes)
    old_slot = record.slot if isinstance(record, Appointment) else None
    record.change(changes)
    if isinstance(record, Appointment) and record.slot != old_slot:
        _allow_new_slot(record)
    _refuse_others(type(record), _owner_of(record), "change" if record.id else "create")


def _allow_new_slot(appointment: Appointment) -> None:
    if appointment.off_hours:
        _refuse_others(Week, appointment.user_id, "book outside of")
    if loses_overbooking(appointment):
        appointment.overbooked = False


def loses_overbooking(appointment: Appointment) -> bool:
    """Return whether the caller's move makes the appointment an ordinary one: it was allowed for the old slot alone."""
    return appointment.overbooked and not caller().is_admin


def staff_for_update(kind: type[Record], *user_ids: int) -> dict[int, User]:
    """Return users by id, locked until the commit, in the order of ids.

    The caller may change the first user's records of this kind. Raises `NotFound` if that user is archived, or
    `Forbidden`.
    """
    users = models.lock_users(user_ids)
    if (user := users.get(user_ids[0])) is None or user.deleted_at:
        raise errors.NotFound(f"There is no user {user_ids[0]}.")
    _refuse_others(kind, user.id, "change")
    return users


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
    allowed = CHANGED_BY[kind].get(caller().role)
    if allowed == ANY or (allowed == OWN and owner_id == caller().id):
        return
    who = _in_words(role for role, which in CHANGED_BY[kind].items() if which == ANY)
    what = OTHER_PEOPLES.get(kind, f"{kind.noun()}s")
    raise errors.Forbidden(f"Only {who} can {verb} other people's {what}.")


def _in_words(roles: Iterable[str]) -> str:
    return " or ".join(IN_WORDS[role] for role in roles)


def _without_hidden_fields(record: Record, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes without the fields that the caller does not see. Null and "" in those mean "not sent".

    Raises `Forbidden` for any other value, even the stored one, so that nobody can guess it. Raises `Invalid` for null
    from a caller who sees the field.
    """
    hidden = hidden_fields(type(record))
    for field, roles in SEEN_BY.get(type(record), {}).items():
        value = changes.get(field, "")
        if field in hidden and value not in (None, ""):
            raise errors.Forbidden(f"Only {_in_words(roles)} can change the {label(field)}.")
        if field not in hidden and value is None:
            raise errors.Invalid({field: [sentences.GIVE]})
    return {field: value for field, value in changes.items() if field not in hidden}


def _refuse_admin_fields(record: Record, changes: dict[str, Any]) -> None:
    for field in ADMIN_FIELDS.get(type(record), set()) & changes.keys():
        if changes[field] != (getattr(record, field) or False) and not caller().is_admin:
            raise errors.Forbidden(f"Only an administrator can change the {label(field)}.")


def authenticate(access: Access = SIGNED_IN, signs_out: int | None = None, reading: Reading | None = None) -> None:
    """Set the caller of this request. Each of its transactions then begins by checking the caller's rights again.

    So a caller who is demoted, deactivated, archived or logged out meanwhile writes nothing any more. `signs_out` is
    the id of the user whose rights or logins the request changes; None for nobody, 0 for the caller. `reading` is what
    the view reads first. Raises `Unauthorized`, or `Forbidden` for a role that `access` does not name.
    """

    def admit(who: Caller) -> None:
        g.caller = who
        request.environ[seen.USER] = who.id  # for the log
        if who.role not in access.roles:
            raise errors.Forbidden(f"Only {access.who} can do this.")

    def check_again() -> None:
        admit(identify_again(g.caller, () if signs_out is None else (signs_out or g.caller.id,)))

    admit(identify(reading))
    g.begin_transaction = check_again


def guard(
    access: Access, signs_out: str = "", once: bool = False, reads: Callable[[int], Reading] | None = None
) -> Callable[[View], View]:
    """Require a signed-in caller of a role that `access` names. Raises `Unauthorized` or `Forbidden`.

    A view with an `OWN_…` access checks the record's owner itself, by `editable`, `create`, `change` or `with_history`.
    `signs_out` names the user whose rights or logins the view changes: an argument of the path, or "caller".
    `once` checks the rights only at the start, not again in the transaction: two concurrent logouts both succeed.
    `reads` tells by the id in the path what the view reads first: it is then read together with the caller.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            reading = reads(*kwargs.values()) if reads else None
            authenticate(access, kwargs.get(signs_out, 0) if signs_out else None, reading)
            if once:
                g.pop("begin_transaction")
            return view(*args, **kwargs)

        return with_access(guarded, access)  # type: ignore[return-value]

    return decorate
