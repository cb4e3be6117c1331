"""What comes in and what goes out: one pydantic model for every body, query string and answer.

`…In` creates, `…Patch` changes, `…Out` answers, `…Query` is a query string.
"""

import json
import re
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

import email_validator
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from models import LARGEST_ID, MINUTES, AppointmentStatus, PatientStatus, Role, Sex, db
from server.database import UTCDateTime, clinic_zone

YEARS = (1850, 2200)  # the years a clinic's dates lie in; beyond year 9999 Python's own arithmetic ends
PASSWORD_LENGTH = 10  # characters, the least


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("NUL characters are not allowed")
    return text


def _spelled(words: type[StrEnum], **also: str) -> BeforeValidator:
    """Reads a word without regard to case, spaces and hyphens as underscores; `also` gives other spellings."""

    def read(word: object) -> str:
        plain = re.sub(r"[\s-]+", "_", word.strip().lower()) if isinstance(word, str) else ""
        plain = also.get(plain, plain)
        if plain not in list(words):
            raise ValueError(f"must be one of: {', '.join(words)}")
        return str(words(plain))

    return BeforeValidator(read)


def _shown(words: type[StrEnum]) -> WithJsonSchema:
    """In the OpenAPI document these words alone, however leniently they are read."""
    return WithJsonSchema({"type": "string", "enum": [str(word) for word in words]})


def _whole_number(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"-?[0-9]{1,20}", value.strip(), re.ASCII):
        raise ValueError("must be a whole number")
    return int(value)


def _or_blank(kind: Any) -> BeforeValidator:
    """Reads "" as null: forms send it for what was not filled in."""
    return BeforeValidator(lambda text: None if text == "" else text, json_schema_input_type=kind | Literal[""] | None)


def _in_range(year: int) -> None:
    if not YEARS[0] <= year < YEARS[1]:
        raise ValueError(f"the year must lie between {YEARS[0]} and {YEARS[1] - 1}")


_DATE = r"\d{4}-?[\dW][\d-]*"
_TIME = r"[\d:.,]+(Z|[+-][\d:.]+)?"


def _iso(value: object) -> datetime:
    """A date, or a date and a time. Python's own reading takes any separator, and ends at a NUL."""
    if not isinstance(value, str) or not re.fullmatch(f"{_DATE}([T ]{_TIME})?", value.strip(), re.ASCII):
        raise ValueError
    return datetime.fromisoformat(value.strip())


def _is_day(value: object) -> bool:
    """Whether it is a date alone."""
    return isinstance(value, str) and bool(re.fullmatch(_DATE, value.strip(), re.ASCII))


def _instant(value: object) -> datetime:
    """An ISO 8601 time. A naive one is the clinic's local time; a date alone is the first instant of its day."""
    try:
        given = _iso(value)
    except ValueError:
        raise ValueError("must be an ISO 8601 time, such as 2027-03-01T10:00 or 2027-03-01T07:00:00Z") from None
    _in_range(given.year)
    zone = clinic_zone()
    instant = (given if given.tzinfo else given.replace(tzinfo=zone)).astimezone(UTC)
    local = instant.astimezone(zone)  # as it will be answered, and may be sent back
    _in_range(local.year)
    if given.tzinfo is None and local.replace(tzinfo=None) != given:
        if _is_day(value) and local.date() == given.date():
            return instant  # the clocks are put forward at its midnight
        raise ValueError(f"there is no such time in {zone}: the clocks are put forward over it")
    return instant


def _end(value: object) -> datetime:
    """The last instant of a span: of a date alone the end of that day."""
    instant = _instant(value)
    if _is_day(value):
        following = instant.astimezone(clinic_zone()).date() + timedelta(days=1)
        midnight = datetime.combine(following, time(), clinic_zone()).astimezone(UTC)
        return midnight - timedelta(microseconds=1)
    return instant


def _day(value: object) -> date:
    """An ISO 8601 date; browsers also send it as a time at midnight, theirs or the clinic's."""
    try:
        given = _iso(value)
        if given.tzinfo and given.time() != time():
            _in_range(given.year)
            given = given.astimezone(clinic_zone())
        if given.time() != time():
            raise ValueError
    except ValueError:
        raise ValueError("must be an ISO 8601 date, such as 1990-05-31") from None
    _in_range(given.year)
    return given.date()


def _not_to_come(day: date) -> date:
    if day > datetime.now(clinic_zone()).date():
        raise ValueError("must not lie in the future")
    return day


def _email(text: str) -> str:
    """An address as RFC 5322 has it, in lower case. Nothing is sent or looked up."""
    try:
        for _ in range(1 if text.isascii() else 2):  # in lower case it may be none any more, and is to be sent back
            text = email_validator.validate_email(text, check_deliverability=False).normalized.lower()
        return text
    except email_validator.EmailNotValidError:
        raise ValueError("must be an email address, such as amina@clinic.example") from None


def spelled_email(text: str) -> str | None:
    """An address as it is stored, however it was typed; None for what is none, and no account can have."""
    with suppress(ValueError):
        return _email(text.strip())
    return None


PHONE = r"\+?[0-9 ()./-]*[0-9][0-9 ()./-]*( ?(x|ext\.?) ?[0-9]+)?"


def _phone(text: str) -> str:
    """Digits, with the signs that people put between them and an extension."""
    if not re.fullmatch(PHONE, text):
        raise ValueError("must be a phone number, such as +254 712 345 678")
    return text


email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()  # `.test`, `.local` and the like are fine within a clinic


def _local_time(instant: datetime) -> str:
    """The clinic's offset: it names one instant, and its first 16 characters are the wall clock."""
    return instant.astimezone(clinic_zone()).isoformat()


_plain = AfterValidator(_no_nul)
Name = Annotated[str, StringConstraints(min_length=1, max_length=100), _plain]
Phone = Annotated[
    str,
    StringConstraints(min_length=3, max_length=32),
    AfterValidator(_phone),
    Field(json_schema_extra={"pattern": f"^{PHONE}$"}),
]
Prose = Annotated[str, StringConstraints(max_length=20_000), _plain]
Search = Annotated[str, StringConstraints(max_length=100), _plain]
Reason = Annotated[str, StringConstraints(max_length=2_000), _plain]
Email = Annotated[
    str, StringConstraints(max_length=254), AfterValidator(_email), Field(json_schema_extra={"format": "email"})
]
_secret = Field(json_schema_extra={"format": "password"})  # Swagger UI shows dots
Password = Annotated[str, StringConstraints(strip_whitespace=False), _secret]  # any string: a wrong one is 401, not 422
NewPassword = Annotated[str, StringConstraints(strip_whitespace=False, min_length=PASSWORD_LENGTH), _plain, _secret]
Id = Annotated[int, Field(ge=1, le=LARGEST_ID), BeforeValidator(_whole_number)]
OwnId = Annotated[Id | None, Field(description="The doctor; if left out, the caller.")]
Count = Annotated[int, BeforeValidator(_whole_number)]
Several = Annotated[list[Id], Field(max_length=100)]
Instant = Annotated[
    datetime,
    BeforeValidator(_instant, json_schema_input_type=datetime),
    Field(description="Without an offset it is the clinic's local time."),
]
LocalTime = Annotated[
    datetime,
    PlainSerializer(_local_time, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]
LastInstant = Annotated[
    datetime,
    BeforeValidator(_end, json_schema_input_type=datetime),
    Field(description="This instant is within; of a date alone, the whole day."),
]
Day = Annotated[date, BeforeValidator(_day, json_schema_input_type=date)]
BirthDay = Annotated[Day, AfterValidator(_not_to_come)]
RoleWord = Annotated[str, _spelled(Role, user="doctor"), _shown(Role)]
SexWord = Annotated[str, _spelled(Sex), _shown(Sex)]
PatientWord = Annotated[str, _spelled(PatientStatus), _shown(PatientStatus)]
AppointmentWord = Annotated[str, _spelled(AppointmentStatus, canceled="cancelled"), _shown(AppointmentStatus)]


class Shape(BaseModel):
    """What every model has: an example in the OpenAPI document, put together from `EXAMPLES`."""

    shown: ClassVar[tuple[str, ...]] = ()  # the fields of the example, where it is not all

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        names = cls.shown or schema.get("properties", {})
        words = EXAMPLES | EXAMPLES_OF.get(re.sub("(In|Out|Patch|Query)$", "", cls.__name__), {})
        schema["examples"] = [{name: words[name] for name in names if name in words}]
        return reference


class In(Shape):
    """A request's fields: as strict as JSON allows, unknown ones refused by name."""

    model_config = ConfigDict(strict=True, extra="forbid", str_strip_whitespace=True)

    def given(self) -> dict[str, Any]:
        """The fields that the client sent."""
        return self.model_dump(exclude_unset=True)


class CollectionQuery(In):
    """Which page of a collection; with no limit, all of it."""

    limit: Annotated[Count, Field(ge=1, le=500)] | None = Field(None, description="How many at most; without it, all.")
    cursor: Annotated[str, StringConstraints(min_length=1, max_length=2_000)] | None = Field(
        None, description="Where the page begins: follow the `Link` header."
    )
    total: bool = Field(False, description="Whether to count all, for `X-Total-Count`.")

    @field_validator("cursor")
    @classmethod
    def _goes_with_a_limit(cls, cursor: str | None, given: ValidationInfo) -> str | None:
        if cursor and given.data.get("limit", 1) is None:
            raise ValueError("give the limit too")
        return cursor

    def filters(self) -> dict[str, Any]:
        """What the rows have to be, by the name of the parameter; what was not given is left out."""
        given = {
            name: getattr(self, name) for name in self.model_fields_set - {"limit", "cursor", "total", "sort", "q"}
        }
        return {name: given[name] for name in sorted(given) if given[name] not in (None, [])}

    def order(self) -> str:
        """The name of the order that was asked for, or ""."""
        return getattr(self, "sort", None) or ""

    def searched(self) -> str:
        """What was searched for, or ""."""
        return getattr(self, "q", None) or ""


class SearchQuery(CollectionQuery):
    q: Search | None = Field(None, description="Words that begin a name.")

    @field_validator("sort", check_fields=False)
    @classmethod
    def _is_the_only_order(cls, sort: str | None, given: ValidationInfo) -> str | None:
        if sort and given.data.get("q"):
            raise ValueError("cannot be given with q: what is found comes in the order of the match")
        return sort


class Out(Shape):
    """An answer, read off a record."""

    model_config = ConfigDict(
        from_attributes=True, serialize_by_alias=True, json_schema_serialization_defaults_required=True
    )

    @classmethod
    def of(cls, record: object) -> Self:
        return cls.model_validate(record)


class Patch(In):
    """Changes some fields. A field that the server owns, one in `answer` but not in the model, is ignored."""

    answer: ClassVar[type[Out]]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Every field may be left out; none that is sent may be null unless it was so before."""
        for field in cls.model_fields.values():
            field.default, field.default_factory = None, None
        cls.model_rebuild(force=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A field that is left out has no default: it stays as it is. Those that the server owns are named."""
        reference = super().__get_pydantic_json_schema__(core_schema, handler)
        schema = handler.resolve_ref_schema(reference)
        for field in schema["properties"].values():
            field.pop("default", None)
        owned = {"readOnly": True, "description": "The server's own: ignored here."}
        schema["properties"] |= {name: owned for name in cls.answer.model_fields if name not in cls.model_fields}
        return reference

    @model_validator(mode="before")
    @classmethod
    def _leave_out_the_servers_own(cls, fields: object) -> object:
        if not isinstance(fields, dict):
            return fields
        owned = cls.answer.model_fields.keys() - cls.model_fields.keys()
        return {name: value for name, value in fields.items() if name not in owned}


class Kept(Out):
    """What every record's answer has."""

    id: int
    created_at: LocalTime
    updated_at: LocalTime
    version: int


class Message(Out):
    msg: str


class Person(Out):
    id: int
    first_name: str
    last_name: str


# --- Staff ---


class Credentials(In):
    email: Annotated[str, StringConstraints(max_length=254), _plain]
    password: Password


class UserOut(Kept):
    first_name: str
    last_name: str
    email: str
    role: Annotated[str, _shown(Role)]
    is_active: bool


class UserIn(In):
    first_name: Name
    last_name: Name
    email: Email
    password: NewPassword
    role: RoleWord = str(Role.DOCTOR)


class UserPatch(Patch):
    answer = UserOut
    shown = ("last_name", "email")
    first_name: Name
    last_name: Name
    email: Email
    role: RoleWord
    is_active: bool


class UserQuery(SearchQuery):
    role: list[RoleWord] = []
    is_active: bool | None = None
    sort: Literal["id", "-id", "last_name", "-last_name"] | None = None


class TokensOut(Out):
    """The answer to a login: a short-lived access token, and a refresh token that is good once."""

    user: UserOut
    access_token: str
    refresh_token: str


class LogoutQuery(In):
    everywhere: bool = False


class SessionOut(Out):
    id: int
    device: str
    address: str
    created_at: LocalTime
    last_used_at: LocalTime
    current: bool = False


class PasswordChange(In):
    current_password: Password
    new_password: NewPassword


class ForgottenPassword(In):
    email: Email


class PasswordResetIn(In):
    token: Annotated[str, StringConstraints(max_length=200), _plain]
    password: NewPassword


# --- Patients ---


class PatientOut(Kept):
    mrn: str
    first_name: str
    last_name: str
    phone_number: str
    status: Annotated[str, _shown(PatientStatus)]
    doctor_summary: str
    diagnosis: str
    admitted_at: LocalTime | None
    discharged_at: LocalTime | None
    date_of_birth: date | None
    sex: Annotated[str, _shown(Sex)] | None

    @property
    def accessed(self) -> str:
        """What a reader of this answer has seen, for the access log."""
        return f"patient {self.id}"


class PatientIn(In):
    first_name: Name
    last_name: Name
    phone_number: Phone
    status: PatientWord = str(PatientStatus.ADMITTED)
    doctor_summary: Prose = ""
    diagnosis: Prose = ""
    admitted_at: Annotated[Instant | None, _or_blank(Instant)] = None
    discharged_at: Annotated[Instant | None, _or_blank(Instant)] = None
    date_of_birth: Annotated[BirthDay | None, _or_blank(BirthDay)] = None
    sex: Annotated[SexWord | None, _or_blank(SexWord)] = None


class PatientPatch(PatientIn, Patch):
    answer = PatientOut
    shown = ("status", "doctor_summary", "diagnosis")


class PatientQuery(SearchQuery):
    q: Search | None = Field(
        None, description="Words that begin a name or an MRN, or that begin or end a phone number."
    )
    status: list[PatientWord] = []
    admitted_from: Instant | None = None
    admitted_to: LastInstant | None = None
    sort: Literal["id", "-id", "last_name", "-last_name", "admitted_at", "-admitted_at"] | None = None


# --- Appointments ---


class AppointmentOut(Kept):
    appointment_datetime: LocalTime
    duration_minutes: int
    status: Annotated[str, _shown(AppointmentStatus)]
    reason: str
    patient_id: int
    user_id: int
    overbooked: bool
    patient_name: str
    doctor_name: str
    patient: Person
    doctor: Person


def _whole_seconds(instant: datetime) -> datetime:
    return instant.replace(microsecond=0)


class AppointmentIn(In):
    shown: ClassVar[tuple[str, ...]] = ("appointment_datetime", "duration_minutes", "reason", "patient_id")
    appointment_datetime: Annotated[Instant, AfterValidator(_whole_seconds)]
    duration_minutes: Annotated[Count, Field(ge=MINUTES[0], le=MINUTES[1])] = 30
    status: AppointmentWord = str(AppointmentStatus.SCHEDULED)
    reason: Reason = ""
    patient_id: Id
    user_id: OwnId = None
    overbooked: bool = False


class AppointmentPatch(AppointmentIn, Patch):
    answer = AppointmentOut
    shown = ("appointment_datetime", "duration_minutes")
    user_id: Id


class AppointmentQuery(CollectionQuery):
    user_id: Several = []
    patient_id: Several = []
    status: list[AppointmentWord] = []
    from_: Instant | None = Field(None, alias="from")
    to: LastInstant | None = None
    sort: Literal["id", "-id", "appointment_datetime", "-appointment_datetime"] | None = None


# --- Reports ---


class ImageOut(Out):
    id: int
    image_url: str
    width: int = Field(description="Pixels, as a browser shows it: upright.")
    height: int = Field(description="Pixels, as a browser shows it: upright.")
    format: str
    bytes: int


class ReportOut(Kept):
    diagnosis: str
    patient_id: int
    user_id: int
    patient_name: str
    doctor_name: str
    images: list[ImageOut]

    @property
    def accessed(self) -> str:
        """What a reader of this answer has seen, and to which images they were given a link, for the access log."""
        return f"report {self.id} (images {' '.join(str(image.id) for image in self.images)})"


class ReportIn(In):
    shown: ClassVar[tuple[str, ...]] = ("patient_id", "diagnosis")
    patient_id: Id
    user_id: OwnId = None
    diagnosis: Prose = ""


class ReportPatch(ReportIn, Patch):
    answer = ReportOut
    shown = ("diagnosis",)
    user_id: Id
    replace_images: bool


class ReportQuery(CollectionQuery):
    user_id: Several = []
    patient_id: Several = []
    from_: Instant | None = Field(None, alias="from")
    to: LastInstant | None = None
    sort: Literal["id", "-id", "created_at", "-created_at"] | None = None


# --- History ---

TIMES = {
    field.name for table in db.metadata.tables.values() for field in table.c if isinstance(field.type, UTCDateTime)
}


class Change(Out):
    """A field's values before and after. A password's are not told."""

    before: Any = Field(serialization_alias="from")
    after: Any = Field(serialization_alias="to")


class HistoryOut(Out):
    id: int
    at: LocalTime
    actor_id: int | None
    actor_name: str | None
    kind: str
    record_id: int
    action: str
    version: int | None
    request_id: str | None
    changes: dict[str, Change] | None  # null once the record was purged

    @property
    def accessed(self) -> str:
        """What a reader of this answer has seen, for the access log."""
        return f"history of {self.kind} {self.record_id}"

    @field_validator("changes", mode="before")
    @classmethod
    def _read(cls, stored: str | None) -> dict[str, dict[str, Any]] | None:
        if stored is None:
            return None
        changes: dict[str, list[Any]] = json.loads(stored)
        for name in TIMES & changes.keys():  # kept in UTC, told as everywhere
            changes[name] = [instant and _local_time(datetime.fromisoformat(instant)) for instant in changes[name]]
        return {name: {"before": before, "after": after} for name, (before, after) in changes.items()}


AuditKind = Literal["user", "patient", "appointment", "report", "image", "sign-in"]


class AuditQuery(In):
    actor: Annotated[list[Id], Field(max_length=16)] = Field([], description="The users who did it.")
    kind: list[AuditKind] = Field([], description="What it was done to.")
    from_: Instant | None = Field(None, alias="from")
    to: LastInstant | None = None
    limit: Annotated[Count, Field(ge=1, le=500)] = 100
    before: Annotated[Count, Field(ge=1, le=2**63 - 1)] | None = Field(
        None, description="The id of an entry, for those older than it: follow the `Link` header."
    )


# --- The server itself ---


class Health(Out):
    status: str


class Readiness(Out):
    status: str
    database: str
    schema_revision: str


class Welcome(Out):
    name: str
    version: str
    links: dict[str, str]


# --- Examples: of each field, for the OpenAPI document; a test sends them ---

_PATIENT = {"id": 1, "first_name": "Amina", "last_name": "Wanjiru"}
_DOCTOR = {"id": 1, "first_name": "Tomás", "last_name": "Okafor"}
_STAFF = {**_DOCTOR, "email": "tomas.okafor@clinic.example", "role": "doctor"}
_MADE = {"created_at": "2030-03-01T09:12:45+00:00", "updated_at": "2030-03-01T09:12:45+00:00", "version": 1}

EXAMPLES: dict[str, Any] = {
    **_MADE,
    "id": 1,
    "patient_id": 1,
    "user_id": 1,
    "patient": _PATIENT,
    "doctor": _DOCTOR,
    "patient_name": "Amina Wanjiru",
    "doctor_name": "Tomás Okafor",
    "msg": "Patient 1 is archived.",
    # accounts
    "email": _STAFF["email"],
    "password": "three green herons",
    "current_password": "three green herons",
    "new_password": "four violet herons",
    "role": "doctor",
    "is_active": True,
    "user": {**_STAFF, **_MADE, "is_active": True},
    "access_token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.access",
    "refresh_token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.refresh",
    "token": "Zk3mJ0c9pYq2b1tVw5x8Lr7sNd4hGf6aQeRuTiOyPzA",
    "everywhere": False,
    "device": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0",
    "address": "192.0.2.7",
    "last_used_at": "2030-03-01T11:40:02+00:00",
    "current": True,
    # patients
    "mrn": "4829105773",
    "phone_number": "+254 712 345 678",
    "doctor_summary": "Fever for three days, no cough.",
    "diagnosis": "Malaria",
    "admitted_at": "2030-03-01T08:30:00+00:00",
    "discharged_at": None,
    "date_of_birth": "1990-05-31",
    "sex": "female",
    # appointments
    "appointment_datetime": "2030-03-04T10:00:00+00:00",
    "duration_minutes": 30,
    "reason": "Follow-up",
    "overbooked": False,
    # reports
    "replace_images": False,
    # history
    "at": "2030-03-01T09:12:45+00:00",
    "actor_id": 1,
    "actor_name": "Tomás Okafor",
    "kind": "patient",
    "record_id": 1,
    "action": "change",
    "request_id": "9f8e7d6c5b4a3921",
    "changes": {"status": {"from": "admitted", "to": "healed"}},
    "image_url": "https://res.cloudinary.com/clinic/image/authenticated/s--1a2b3c4d--/v1/9f8e7d6c.png",
    "width": 1200,
    "height": 900,
    "format": "png",
    "bytes": 482113,
    # the server itself
    "name": "Hosi Server",
    "database": "sqlite",
    "schema_revision": "0008",
    "links": {"documentation": "/docs", "openapi": "/openapi.json"},
}
EXAMPLES["images"] = [{name: EXAMPLES[name] for name in ImageOut.model_fields}]

EXAMPLES_OF: dict[str, dict[str, Any]] = {  # where a model means something else by the name
    "User": _DOCTOR,
    "Person": _PATIENT,
    "Patient": {**_PATIENT, "status": "admitted"},
    "Appointment": {"status": "scheduled"},
    "Change": {"from": "admitted", "to": "healed"},
    "Health": {"status": "ok"},
    "Readiness": {"status": "ready"},
    "Welcome": {"version": "1.0.0"},
}
