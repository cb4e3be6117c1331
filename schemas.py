"""The pydantic model of every body, query string and answer.

`…In` creates a record, `…Patch` changes it, `…Out` answers it, `…Query` is a query string. A field has an example for
the OpenAPI document; `examples=[]` leaves it out of its model's example.
"""

import json
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import date, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import email_validator
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    RootModel,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from config import CLOCK, minute_of
from models import (
    HOLDING,
    MINUTES,
    Absence,
    Appointment,
    AppointmentStatus,
    Patient,
    PatientStatus,
    Record,
    Report,
    Role,
    Sex,
    User,
    Weekday,
)
from server import iso8601, phones, sentences, times
from server.database import UTCDateTime, db
from server.names import check_name
from server.web import LARGEST_ID

MOST_BIRTH_DATES = 32  # of one query
PASSWORD_LENGTH = 10  # minimum, in characters
LONGEST_PASSWORD = 4_000  # characters
LONGEST_WORD = 100  # characters, blanks around it included

# What sentences call these fields. The others go by their names: "first name".
sentences.name_fields(
    actor="user",
    admitted_at="time of admission",
    admitted_from="start of the span",
    admitted_to="end of the span",
    by="length of the periods",
    appointment_datetime="time of the appointment",
    before="id of the entry",
    cancel_rest="cancelling of the rest",
    date_of_birth="birth date",
    discharged_at="time of discharge",
    dry_run="dry run",
    duration_minutes="duration in minutes",
    ends_at="end of the absence",
    everywhere="sign-out everywhere",
    first="first appointment",
    from_="start of the span",
    hand_over_to="colleague",
    holding="holding of slots",
    is_active="state of the account",
    keep_appointments="keeping of the appointments",
    limit="page size",
    minutes="length in minutes",
    off_hours="booking outside of the hours",
    on="day",
    overbooked="overbooking",
    patient_id="patient",
    q="search text",
    query="query string",
    replace_images="replacement of the images",
    second="second appointment",
    sort="order",
    starts_at="start of the absence",
    to="end of the span",
    user_id="doctor",
    **{"from": "start of the span"},
)


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("The {field} cannot have NUL characters.")
    return text


def _word(words: type[StrEnum], **aliases: str) -> BeforeValidator:
    """Read a word in any case, with spaces or hyphens for underscores. `aliases` are other spellings."""

    def read(word: object) -> str:
        short = word if isinstance(word, str) and len(word) <= LONGEST_WORD else ""
        plain = re.sub(r"[\s-]+", "_", short.strip().lower())
        plain = aliases.get(plain, plain)
        if plain not in list(words):
            raise ValueError(sentences.one_of(words))
        return str(words(plain))

    return BeforeValidator(read)


def _enum(words: type[StrEnum]) -> WithJsonSchema:
    """List the words in the OpenAPI document as they are answered."""
    return WithJsonSchema({"type": "string", "enum": [str(word) for word in words], "title": words.__name__})


def _whole_number(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"-?[0-9]{1,20}", value.strip(), re.ASCII):
        raise ValueError(sentences.WHOLE_NUMBER)
    return int(value)


def _or_blank(kind: Any) -> BeforeValidator:
    """Read "" as null, because a form sends "" for an empty input."""
    return BeforeValidator(lambda text: None if text == "" else text, json_schema_input_type=kind | None)


def _not_in_future(day: date) -> date:
    if day > times.today():
        raise ValueError("The {field} cannot lie in the future.")
    return day


def _email(text: str) -> str:
    """Return an email address (RFC 5322) in lower case. Sends nothing and asks no DNS server."""
    try:
        for _ in range(1 if text.isascii() else 2):  # its lower case may be invalid, and clients send that back
            text = email_validator.validate_email(text, check_deliverability=False).normalized.lower()
        return text
    except email_validator.EmailNotValidError:
        raise ValueError("Please write the {field} as amina@clinic.example.") from None


def spelled_email(text: str) -> str | None:
    """Return an email address in the form in which it is stored, or None for a text that is no email address."""
    with suppress(ValueError):
        return _email(text.strip())
    return None


email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()  # a clinic may use `.test` or `.local` inside its network


_nul_free = AfterValidator(_no_nul)
ChangedName = Annotated[str, StringConstraints(min_length=1, max_length=100)]  # the record checks a new name itself
Name = Annotated[ChangedName, AfterValidator(check_name)]
_phone = Field(json_schema_extra={"pattern": f"^{phones.PATTERN}$", "minLength": 3, "maxLength": phones.LENGTH})
_uncleaned = StringConstraints(max_length=100)  # signs that are not seen are dropped
Phone = Annotated[str, _uncleaned, AfterValidator(phones.cleaned), _phone]
ChangedPhone = Annotated[
    str, _uncleaned, AfterValidator(phones.cleaned_or_old), _phone
]  # the record checks a new number itself
Prose = Annotated[str, StringConstraints(max_length=20_000), _nul_free]
Search = Annotated[str, StringConstraints(max_length=100), _nul_free]
Reason = Annotated[str, StringConstraints(max_length=2_000), _nul_free]
Email = Annotated[
    str,
    StringConstraints(max_length=254),
    AfterValidator(_email),
    Field(json_schema_extra={"format": "email"}, examples=["tomas.okafor@clinic.example"]),
]
_secret = Field(json_schema_extra={"format": "password"})  # Swagger UI hides the text
Password = Annotated[  # any string: a wrong password is 401, not 422
    str, StringConstraints(strip_whitespace=False), _secret, Field(examples=["three green herons"])
]
NewPassword = Annotated[
    str,
    StringConstraints(strip_whitespace=False, min_length=PASSWORD_LENGTH, max_length=LONGEST_PASSWORD),
    _nul_free,
    _secret,
]
Id = Annotated[int, Field(ge=1, le=LARGEST_ID), BeforeValidator(_whole_number)]
OwnId = Annotated[Id | None, Field(description="The doctor. By default the caller, unless that is a receptionist.")]
Count = Annotated[int, BeforeValidator(_whole_number)]
Ids = Annotated[list[Id], Field(max_length=100)]
ME = 0  # in a query, for the caller's id


def _read_person(value: object, read: Callable[[object], int]) -> int:
    """Read an id, or the word `me`."""
    if isinstance(value, str) and value.strip().lower() == "me":
        return ME
    try:
        return read(value)
    except ValueError:
        raise ValueError("Please give a number for the {field}, or the word me.") from None


IdOrMe = Annotated[
    Id,
    WrapValidator(_read_person),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": LARGEST_ID}, {"type": "string", "enum": ["me"]}]}
    ),
]
PeopleIds = Annotated[list[IdOrMe], Field(max_length=100, description="`me` is the caller.")]


def _written(about: str) -> WithJsonSchema:
    """Describe a time of a request. `format: date-time` would mean an offset to generated clients; answers have it."""
    return WithJsonSchema(
        {"type": "string", "pattern": iso8601.PATTERN, "maxLength": iso8601.LONGEST, "description": about}
    )


Instant = Annotated[
    datetime,
    BeforeValidator(times.read_instant),
    _written("An ISO 8601 time. Without an offset it is the clinic's local time: `2027-03-01T10:00`."),
]
LocalTime = Annotated[
    datetime,
    PlainSerializer(times.shown, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]
SpanStart = Annotated[datetime, BeforeValidator(times.read_start), _written("A date means the start of that day.")]


def _after_start(name: str, strictly: bool = False) -> AfterValidator:
    """Refuse the end of a span that begins, with the field `name`, only after it; strictly: or at the same time."""

    def check(end: datetime, before: ValidationInfo) -> datetime:
        if (start := before.data.get(name)) and (start > end or (strictly and start == end)):
            raise ValueError("The span ends before it begins.")
        return end

    return AfterValidator(check)


LastInstant = Annotated[
    datetime,
    BeforeValidator(times.read_end),
    _written("This instant is included. A date includes the whole day."),
]
SpanEnd = Annotated[
    datetime,
    BeforeValidator(times.read_end),
    _written("What begins at this time is not found. A date includes the whole day."),
]
Day = Annotated[date, BeforeValidator(times.read_day, json_schema_input_type=date)]
OnDay = Annotated[date, BeforeValidator(times.read_day_or_today, json_schema_input_type=str)]
BirthDay = Annotated[Day, AfterValidator(_not_in_future)]
RoleField = Annotated[str, _word(Role, user="doctor"), _enum(Role)]
SexField = Annotated[str, _word(Sex), _enum(Sex)]
PatientStatusField = Annotated[str, _word(PatientStatus), _enum(PatientStatus)]
AppointmentStatusField = Annotated[str, _word(AppointmentStatus, canceled="cancelled"), _enum(AppointmentStatus)]


class In(BaseModel):
    """The fields of a request: as strict as JSON allows. An unknown field is refused by its name."""

    model_config = ConfigDict(strict=True, extra="forbid", str_strip_whitespace=True)

    def sent_fields(self) -> dict[str, Any]:
        """Return the fields that the client sent."""
        return self.model_dump(exclude_unset=True)


class CollectionQuery(In):
    """A page of a collection, or with no limit the whole collection."""

    limit: Annotated[Count, Field(ge=1, le=500)] | None = Field(
        None, description="The size of a page. Without it the answer is the whole collection."
    )
    cursor: Annotated[str, StringConstraints(min_length=1, max_length=2_000)] | None = Field(
        None, description="Where the page begins. The `Link` header of the page before has it."
    )
    total: bool = Field(False, description="Whether to count the records on all pages, for `X-Total-Count`.")

    @field_validator("cursor")
    @classmethod
    def _needs_a_limit(cls, cursor: str | None, before: ValidationInfo) -> str | None:
        if cursor and before.data.get("limit", 1) is None:
            raise ValueError("Please give the page size too.")
        return cursor

    def filters(self, me: int) -> dict[str, Any]:
        """Return the filters that the client sent, by the name of the parameter, in alphabetical order.

        `me` is the caller's id, which `user_id=me` means.
        """
        names = self.model_fields_set - {"limit", "cursor", "total", "sort", "q"}
        values = {name: getattr(self, name) for name in sorted(names)}
        if "user_id" in values:
            values["user_id"] = [person or me for person in values["user_id"]]
        return {name: value for name, value in values.items() if value not in (None, [])}

    def order(self) -> str:
        """Return the name of the order, or "" if the client named none."""
        return getattr(self, "sort", None) or ""

    def searched(self) -> str:
        """Return the text to search for, or ""."""
        return getattr(self, "q", None) or ""


class SearchQuery(CollectionQuery):
    q: Search | None = Field(None, description="Words that begin a name.")

    @field_validator("sort", check_fields=False)
    @classmethod
    def _is_the_only_order(cls, sort: str | None, before: ValidationInfo) -> str | None:
        if sort and before.data.get("q"):
            raise ValueError("Please leave out the order: a search text finds in the order of the match.")
        return sort


class Out(BaseModel):
    """An answer model, read from a record, a row or a dict."""

    model_config = ConfigDict(
        from_attributes=True, serialize_by_alias=True, json_schema_serialization_defaults_required=True
    )

    @classmethod
    def of(cls, record: object, finish: Callable[[dict[str, Any]], None] | None = None) -> Self:
        """Return the answer model of a record. `finish` completes its fields, with links for the caller for example."""
        answer = cls.model_validate(record)
        if finish is None:
            return answer
        fields = answer.model_dump()
        finish(fields)
        return cls.model_validate(fields)


class Patch(In):
    """Some fields of a record. The fields that the server owns, those of `answer` alone, are ignored.

    A subclass has an example of its own: a change names few fields.
    """

    answer: ClassVar[type[Out]]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Make every field optional. A field that is sent is validated as before, so null stays invalid."""
        for field in cls.model_fields.values():
            field.default, field.default_factory = None, None
        cls.model_rebuild(force=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Leave out the defaults: a field that is not sent stays as it is. Add the fields that the server owns."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        for field in schema["properties"].values():
            field.pop("default", None)
        about = "The server owns this field and ignores it here."
        owned = {"readOnly": True, "description": about, "x-answer": cls.answer.__name__}
        names = [field.serialization_alias or name for name, field in cls.answer.model_fields.items()]
        schema["properties"] |= {name: owned for name in names if name in cls._fields_of_the_server()}
        return reference

    @model_validator(mode="before")
    @classmethod
    def _ignore_fields_of_the_server(cls, fields: object) -> object:
        if not isinstance(fields, dict):
            return fields
        owned = cls._fields_of_the_server()
        return {name: value for name, value in fields.items() if name not in owned}

    @classmethod
    def _fields_of_the_server(cls) -> set[str]:
        """Return the fields of `answer`, as answers name them, that nobody can change."""
        answered = {field.serialization_alias or name for name, field in cls.answer.model_fields.items()}
        return answered - cls.model_fields.keys()


def _example(**fields: Any) -> ConfigDict:
    """Return the configuration of a model with an example of its own."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class RecordOut(Out):
    """The fields of every record's answer model. Fields that the caller may not see are null."""

    kind: ClassVar[type[Record]]
    _hidden: ClassVar["staticmethod[[type[Record], int | None], Collection[str]]"]

    id: int = Field(examples=[1])
    created_at: LocalTime = Field(examples=["2030-03-01T09:12:45+00:00"])
    updated_at: LocalTime = Field(examples=["2030-03-01T09:12:45+00:00"])
    version: int = Field(examples=[1])

    @staticmethod
    def hide_fields_by(hidden: Callable[[type[Record], int | None], Collection[str]]) -> None:
        """Make those fields null in every answer that `hidden` returns for its kind of record, and its `user_id`."""
        RecordOut._hidden = staticmethod(hidden)

    @model_validator(mode="after")
    def _hide_fields(self) -> Self:
        for name in self._hidden(self.kind, getattr(self, "user_id", None)):
            setattr(self, name, None)
        return self


class Message(Out):
    msg: str = Field(examples=["Patient 1 is archived."])


class Person(Out):
    id: int = Field(examples=[1])
    first_name: str = Field(examples=["Amina"])
    last_name: str = Field(examples=["Wanjiru"])


class PatientBrief(Person):
    """What is needed to call a patient, and to tell them from another of the same name."""

    mrn: str = Field(examples=["4829105773"])
    phone_number: str = Field(examples=["+254 712 345 678"])
    date_of_birth: date | None = Field(examples=["1990-05-31"])


# --- Staff ---


class Credentials(In):
    email: Annotated[str, StringConstraints(max_length=254), _nul_free] = Field(
        examples=["tomas.okafor@clinic.example"]
    )
    password: Password


class UserOut(RecordOut):
    kind = User
    first_name: str = Field(examples=["Tomás"])
    last_name: str = Field(examples=["Okafor"])
    email: str = Field(examples=["tomas.okafor@clinic.example"])
    role: Annotated[str, _enum(Role)] = Field(examples=["doctor"])
    is_active: bool = Field(examples=[True])


class UserIn(In):
    first_name: Name = Field(examples=["Tomás"])
    last_name: Name = Field(examples=["Okafor"])
    email: Email
    password: NewPassword = Field(examples=["three green herons"])
    role: RoleField = Field(str(Role.DOCTOR), examples=["doctor"])


class UserPatch(Patch):
    model_config = _example(last_name="Okafor", email="tomas.okafor@clinic.example")
    answer = UserOut
    first_name: ChangedName = Field(examples=["Tomás"])
    last_name: ChangedName = Field(examples=["Okafor"])
    email: Email
    role: RoleField = Field(examples=["doctor"])
    is_active: bool = Field(examples=[True])
    keep_appointments: bool = Field(
        examples=[],
        description="With `is_active: false`: whether the appointments to come stay with the closed account.",
    )


class UserQuery(SearchQuery):
    role: list[RoleField] = []
    is_active: bool | None = None
    sort: Literal["id", "-id", "last_name", "-last_name"] | None = None


class TokensOut(Out):
    """The answer to a login: a short-lived access token, and a refresh token that is good once."""

    user: UserOut
    access_token: str = Field(examples=["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.access"])
    refresh_token: str = Field(examples=["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.refresh"])
    expires_in: int = Field(description="Seconds for which the access token works.", examples=[1800])


class LogoutQuery(In):
    everywhere: bool = False


class SessionOut(Out):
    id: int = Field(examples=[1])
    device: str = Field(examples=["Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"])
    address: str = Field(examples=["192.0.2.7"])
    created_at: LocalTime = Field(examples=["2030-03-01T09:12:45+00:00"])
    last_used_at: LocalTime = Field(examples=["2030-03-01T11:40:02+00:00"])
    current: bool = Field(False, examples=[True])


class PasswordChange(In):
    current_password: Password
    new_password: NewPassword = Field(examples=["four violet herons"])


class ForgottenPassword(In):
    email: Email


class PasswordResetIn(In):
    token: Annotated[str, StringConstraints(max_length=200), _nul_free] = Field(
        examples=["Zk3mJ0c9pYq2b1tVw5x8Lr7sNd4hGf6aQeRuTiOyPzA"]
    )
    password: NewPassword = Field(examples=["three green herons"])


# --- Patients ---

_HIDDEN = "Null for a receptionist, who sends null, an empty text or nothing."


class MergedOut(Out):
    """A patient who was merged into another."""

    id: int = Field(examples=[5])
    mrn: str = Field(examples=["7350921864"])


class PatientOut(RecordOut):
    kind = Patient
    mrn: str = Field(examples=["4829105773"])
    first_name: str = Field(examples=["Amina"])
    last_name: str = Field(examples=["Wanjiru"])
    phone_number: str = Field(examples=["+254 712 345 678"])
    status: Annotated[str, _enum(PatientStatus)] = Field(examples=["admitted"])
    doctor_summary: str | None = Field(examples=["Fever for three days, no cough."], description=_HIDDEN)
    diagnosis: str | None = Field(examples=["Malaria"], description=_HIDDEN)
    admitted_at: LocalTime | None = Field(examples=["2026-03-01T08:30:00+00:00"])
    discharged_at: LocalTime | None = Field(examples=[None])
    date_of_birth: date | None = Field(examples=["1990-05-31"])
    sex: Annotated[str, _enum(Sex)] | None = Field(examples=["female"])
    merged: Annotated[list[MergedOut], BeforeValidator(lambda merged: merged or [])] = Field(
        description="The patients who were merged into this patient: the same person."
    )

    @property
    def records_shown(self) -> str:
        """What the access log says that the caller was shown."""
        return f"patient {self.id}"


class DuplicateOut(Out):
    """A patient who may be the same person as another."""

    patient: PatientOut
    reasons: list[str] = Field(examples=[["same name and birth date"]])

    @property
    def records_shown(self) -> str:
        """What the access log says that the caller was shown."""
        return self.patient.records_shown


class MovedOut(Out):
    """How many records moved from one patient to another."""

    appointments: int = Field(examples=[3])
    reports: int = Field(examples=[1])


class MergeIn(In):
    into: Id = Field(examples=[2], description="The patient who is the same person, and stays.")


class MergeOut(Out):
    patient: PatientOut = Field(description="The surviving patient.")
    moved: MovedOut
    differing: list[str] = Field(
        description="The fields in which the two differ. The surviving patient keeps their own.",
        examples=[["phone_number", "date_of_birth"]],
    )

    @property
    def records_shown(self) -> str:
        """What the access log says that the caller was shown."""
        return self.patient.records_shown


class StayingOut(Out):
    """The ids of records that stay with the other patient."""

    appointments: list[int] = Field(examples=[[12]])
    reports: list[int] = Field(examples=[[7]])


class UnmergedOut(Out):
    """A merge that was undone."""

    from_: int = Field(serialization_alias="from", description="The patient who had survived.", examples=[2])
    moved: MovedOut = Field(description="The records that went back.")
    staying: StayingOut = Field(description="The records that were made since the merge. Look whose they are.")


class UnmergedPatientOut(PatientOut):
    unmerged: UnmergedOut


class PatientIn(In):
    first_name: Name = Field(examples=["Amina"])
    last_name: Name = Field(examples=["Wanjiru"])
    phone_number: Phone = Field(examples=["+254 712 345 678"])
    status: PatientStatusField = Field(str(PatientStatus.ADMITTED), examples=["admitted"])
    doctor_summary: Prose | None = Field("", examples=["Fever for three days, no cough."], description=_HIDDEN)
    diagnosis: Prose | None = Field("", examples=["Malaria"], description=_HIDDEN)
    admitted_at: Annotated[Instant | None, _or_blank(Instant)] = Field(None, examples=["2026-03-01T08:30:00+00:00"])
    discharged_at: Annotated[Instant | None, _or_blank(Instant)] = Field(None, examples=[None])
    date_of_birth: Annotated[BirthDay | None, _or_blank(BirthDay)] = Field(None, examples=["1990-05-31"])
    sex: Annotated[SexField | None, _or_blank(SexField)] = Field(None, examples=["female"])


class PatientPatch(PatientIn, Patch):
    model_config = _example(status="admitted", doctor_summary="Fever for three days, no cough.", diagnosis="Malaria")
    answer = UnmergedPatientOut  # has the fields of all answers
    first_name: ChangedName = Field(examples=["Amina"])
    last_name: ChangedName = Field(examples=["Wanjiru"])
    phone_number: ChangedPhone = Field(examples=["+254 712 345 678"])


class PatientQuery(SearchQuery):
    q: Search | None = Field(
        None,
        description="Words that begin a name or an MRN, or that begin or end a phone number in its national or "
        "international form. A date in it is a birth date.",
    )
    status: list[PatientStatusField] = []
    # without `format: date`: Swagger UI has no field for a list of dates, and says so in the console
    date_of_birth: Annotated[
        list[Annotated[Day, BeforeValidator(times.with_plus), WithJsonSchema({"type": "string"})]],
        Field(max_length=MOST_BIRTH_DATES),
    ] = Field([], description="Birth dates such as `1990-05-31`.")
    admitted_from: SpanStart | None = None
    admitted_to: Annotated[LastInstant, _after_start("admitted_from")] | None = None
    sort: Literal["id", "-id", "last_name", "-last_name", "admitted_at", "-admitted_at"] | None = None


# --- Appointments ---


class AppointmentOut(RecordOut):
    kind = Appointment
    appointment_datetime: LocalTime = Field(examples=["2030-03-04T10:00:00+00:00"])
    duration_minutes: int = Field(examples=[30])
    status: Annotated[str, _enum(AppointmentStatus)] = Field(examples=["scheduled"])
    reason: str = Field(examples=["Follow-up"])
    note: str = Field(examples=["Called off by phone"])
    patient_id: int = Field(examples=[1])
    user_id: int = Field(examples=[1])
    overbooked: bool = Field(examples=[False])
    off_hours: bool = Field(
        description="Whether it was booked outside of the doctor's hours on purpose.", examples=[False]
    )
    patient_name: str = Field(examples=["Amina Wanjiru"])
    doctor_name: str = Field(examples=["Tomás Okafor"])
    patient: PatientBrief
    doctor: Person = Field(examples=[{"id": 1, "first_name": "Tomás", "last_name": "Okafor"}])


class TimelineAppointmentOut(AppointmentOut):
    """An appointment of a timeline."""

    entry_kind: Literal["appointment"] = Field(serialization_alias="kind", examples=["appointment"])
    at: LocalTime = Field(description="The time of the appointment.", examples=["2030-03-04T10:00:00+00:00"])


class AppointmentIn(In):
    appointment_datetime: Annotated[Instant, AfterValidator(times.WrittenTime.of_minutes)] = Field(
        examples=["2030-03-04T10:00:00+00:00"],
        description="A whole minute: seconds are cut off. A time without an offset is the clinic's local time.",
    )
    duration_minutes: Annotated[Count, Field(ge=MINUTES[0], le=MINUTES[1])] = Field(30, examples=[30])
    status: AppointmentStatusField = Field(str(AppointmentStatus.SCHEDULED), examples=[])
    reason: Reason = Field("", examples=["Follow-up"])
    note: Reason = Field("", examples=[], description="What the desk should know: why it was called off, for example.")
    patient_id: Id = Field(examples=[1])
    user_id: OwnId = Field(None, examples=[])
    overbooked: bool = Field(False, examples=[])
    off_hours: bool = Field(
        False, examples=[], description="Whether a time outside of the doctor's hours is meant. Without it that is 409."
    )


class AppointmentPatch(AppointmentIn, Patch):
    model_config = _example(appointment_datetime="2030-03-04T10:00:00+00:00", duration_minutes=30)
    answer = TimelineAppointmentOut  # has the fields of all answers
    user_id: Id = Field(examples=[])


class SwapIn(In):
    first: Id = Field(examples=[1], description="An appointment.")
    second: Id = Field(examples=[2], description="The appointment whose time it takes and to which it gives its own.")


class SwapOut(Out):
    first: AppointmentOut
    second: AppointmentOut


class AppointmentQuery(CollectionQuery):
    user_id: PeopleIds = []
    patient_id: Ids = []
    status: list[AppointmentStatusField] = []
    holding: bool | None = Field(
        None, description=f"Whether the status is one of {', '.join(HOLDING)}; an overbooked appointment counts."
    )
    from_: SpanStart | None = Field(
        None, alias="from", description="Finds what touches the span: what ends at this time is not found."
    )
    to: Annotated[SpanEnd, _after_start("from_")] | None = None
    on: OnDay | None = Field(
        None, description="A date or `today`: finds what touches that day. Not with `from` or `to`."
    )
    sort: Literal["id", "-id", "appointment_datetime", "-appointment_datetime"] | None = None

    @field_validator("on")
    @classmethod
    def _is_the_only_span(cls, on: date | None, before: ValidationInfo) -> date | None:
        if on and (before.data.get("from_") or before.data.get("to")):
            raise ValueError("Please give either a day, or the start and end of a span.")
        return on

    def filters(self, me: int) -> dict[str, Any]:
        """Return the filters, with `on` as a span and `holding` as statuses."""
        given = super().filters(me)
        if day := given.pop("on", None):
            given |= {"from_": times.start_of(day), "to": times.start_of(day + times.DAY)}
        if (holding := given.pop("holding", None)) is not None:
            chosen = [status for status in given.get("status", AppointmentStatus) if (status in HOLDING) is holding]
            given["status"] = chosen or [""]  # no appointment has this status
        return dict(sorted(given.items()))


# --- The desk: hours, absences, free slots ---

MOST_HOURS = 56  # of a week: eight a day
WeekdayField = Annotated[
    str,
    _word(
        Weekday,
        **{day: day[:3] for day in ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]},
    ),
    _enum(Weekday),
]


def _clock(value: object) -> str:
    if not (isinstance(value, str) and re.fullmatch(CLOCK, value, re.ASCII)):
        raise ValueError("Please write the time as 08:30; 24:00 ends a day.")
    return value


ClockField = Annotated[
    str, BeforeValidator(_clock), WithJsonSchema({"type": "string", "pattern": f"^({CLOCK})$", "maxLength": 5})
]


class HoursOut(Out):
    """Hours of a weekday at which a user works, on the clinic's clocks."""

    weekday: Annotated[str, _enum(Weekday)] = Field(examples=["mon"])
    from_: str = Field(alias="from", examples=["08:00"])
    to: str = Field(examples=["12:30"])


class HoursIn(In):
    weekday: WeekdayField = Field(examples=["mon"])
    from_: ClockField = Field(alias="from", examples=["08:00"])
    to: ClockField = Field(examples=["12:30"])

    @field_validator("to")
    @classmethod
    def _ends_after_it_begins(cls, to: str, before: ValidationInfo) -> str:
        if (start := before.data.get("from_")) and minute_of(start) >= minute_of(to):
            raise ValueError("Hours end after they begin. Split hours over midnight at 24:00.")
        return to


class WeekIn(RootModel[Annotated[list[HoursIn], Field(max_length=MOST_HOURS)]]):
    """The hours of a week. An empty list means: can be booked at any time."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [[{"weekday": "mon", "from": "08:00", "to": "12:30"}]]}
    )

    @model_validator(mode="after")
    def _do_not_overlap(self) -> Self:
        hours = self.hours()
        if any(one[0] == other[0] and other[1] < one[2] for one, other in pairwise(hours)):
            raise ValueError("The hours of a day do not overlap.")
        return self

    def hours(self) -> list[tuple[int, int, int]]:
        """Return the hours in their order: the weekday from Monday 0, the minute of the start and of the end."""
        days = list(Weekday)
        return sorted((days.index(Weekday(one.weekday)), minute_of(one.from_), minute_of(one.to)) for one in self.root)


class AbsenceFields(Out):
    user_id: int = Field(examples=[1])
    starts_at: LocalTime = Field(examples=["2030-03-04T00:00:00+00:00"])
    ends_at: LocalTime = Field(examples=["2030-03-06T00:00:00+00:00"])
    reason: str | None = Field(description="Null for other doctors.", examples=["Training"])


class AbsenceOut(AbsenceFields, RecordOut):
    kind = Absence


class AbsenceIn(In):
    starts_at: Annotated[Instant, AfterValidator(times.WrittenTime.of_minutes)] = Field(
        examples=["2030-03-04T00:00:00+00:00"], description="A time, or a date for the start of that day."
    )
    ends_at: Annotated[datetime, BeforeValidator(times.read_until), _written("")] = Field(
        examples=["2030-03-05"], description="A time, or a date for the end of that day."
    )
    reason: Reason = Field("", examples=["Training"])
    hand_over_to: Id | None = Field(
        None, examples=[], description="A colleague who gets the appointments, at the same times."
    )
    cancel_rest: bool = Field(
        False,
        examples=[],
        description="Whether to cancel the appointments that the colleague cannot take; without a colleague, all.",
    )


class AbsenceQuery(In):
    dry_run: bool = Field(False, description="Whether to say only what the request would do.")


class AbsenceMade(Out):
    """An absence with the ids of the appointments that were handed over and cancelled for it."""

    absence: AbsenceOut
    handed_over: list[int] = Field(examples=[[]])
    cancelled: list[int] = Field(examples=[[]])

    @property
    def id(self) -> int:
        """The id of the absence, for its address."""
        return self.absence.id


class SlotOut(Out):
    """A time at which a doctor is free."""

    user_id: int = Field(examples=[1])
    doctor_name: str = Field(examples=["Tomás Okafor"])
    start: LocalTime = Field(examples=["2030-03-04T10:00:00+00:00"])
    end: LocalTime = Field(examples=["2030-03-04T10:30:00+00:00"])


class ClashOut(Out):
    """An appointment that the colleague cannot take."""

    appointment: AppointmentOut
    conflict: AppointmentOut | None = Field(
        description="The appointment in the way. Null where the colleague is absent or does not work.", examples=[None]
    )
    alternatives: list[SlotOut] = Field(description="The next times at which the colleague and the patient are free.")


class AbsenceTrial(Out):
    """What a request for an absence would do."""

    absence: AbsenceFields
    handed_over: list[int] = Field(examples=[[]])
    cancelled: list[int] = Field(examples=[[]])
    clashes: list[ClashOut]


SlotsEnd = Annotated[datetime, BeforeValidator(times.read_before), _written(""), _after_start("from_", strictly=True)]


class SlotQuery(In):
    user_id: PeopleIds = []
    from_: SpanStart | None = Field(None, alias="from", description="By default now. Earlier slots are left out.")
    to: (
        Annotated[datetime, BeforeValidator(times.read_before), _written(""), _after_start("from_", strictly=True)]
        | None
    ) = Field(None, description="By default 14 days after the start, at most 62. A date includes the whole day.")
    minutes: Annotated[Count, Field(ge=MINUTES[0], le=MINUTES[1])] = 30
    patient_id: Id | None = Field(None, description="Leaves out the times at which this patient is elsewhere.")
    limit: Annotated[Count, Field(ge=1, le=500)] = 50


# --- Reports ---


class ImageOut(Out):
    id: int = Field(examples=[1])
    image_url: str = Field(
        json_schema_extra={"format": "uri"},
        examples=["https://res.cloudinary.com/clinic/image/authenticated/s--1a2b3c4d--/v1/9f8e7d6c.png"],
    )
    width: int = Field(description="Pixels of the image as a browser shows it, upright.", examples=[1200])
    height: int = Field(description="Pixels of the image as a browser shows it, upright.", examples=[900])
    format: str = Field(examples=["png"])
    bytes: int = Field(examples=[482113])
    thumbnail_url: str = Field(
        json_schema_extra={"format": "uri"},
        validation_alias=AliasChoices("thumbnail_url", "image_url"),  # a record has none; the links are made afterwards
        description="The image with at most 320 pixels on its longer side; the image itself while there is none.",
        examples=[
            "https://res.cloudinary.com/clinic/image/authenticated/s--5e6f7a8b--/c_limit,h_320,w_320/v1/9f8e7d6c.png"
        ],
    )


class ReportOut(RecordOut):
    kind = Report
    diagnosis: str = Field(examples=["Malaria"])
    patient_id: int = Field(examples=[1])
    user_id: int = Field(examples=[1])
    patient_name: str = Field(examples=["Amina Wanjiru"])
    doctor_name: str = Field(examples=["Tomás Okafor"])
    patient: PatientBrief
    doctor: Person = Field(examples=[{"id": 1, "first_name": "Tomás", "last_name": "Okafor"}])
    images: list[ImageOut]

    @property
    def records_shown(self) -> str:
        """What the access log says that the caller was shown, and which images they got links to."""
        return f"report {self.id} (images {' '.join(str(image.id) for image in self.images)})"


class TimelineReportOut(ReportOut):
    """A report of a timeline."""

    entry_kind: Literal["report"] = Field(serialization_alias="kind", examples=["report"])
    at: LocalTime = Field(description="When the report was filed.", examples=["2030-03-01T09:12:45+00:00"])


class ReportIn(In):
    patient_id: Id = Field(examples=[1])
    user_id: OwnId = Field(None, examples=[])
    diagnosis: Prose = Field("", examples=["Malaria"])


class ReportPatch(ReportIn, Patch):
    model_config = _example(diagnosis="Malaria")
    answer = TimelineReportOut  # has the fields of all answers
    user_id: Id = Field(examples=[])
    replace_images: bool = Field(examples=[])


class ReportQuery(CollectionQuery):
    user_id: PeopleIds = []
    patient_id: Ids = []
    from_: SpanStart | None = Field(None, alias="from")
    to: Annotated[LastInstant, _after_start("from_")] | None = None
    sort: Literal["id", "-id", "created_at", "-created_at"] | None = None


# --- Timeline ---


class TimelineQuery(CollectionQuery):
    """A page of a timeline, or with no limit the whole timeline."""


# --- Statistics ---

Counts = Annotated[dict[str, int], Field(examples=[{"completed": 17, "no_show": 3}])]


class CountOut(Out):
    """A number of records, and how many of them have each status."""

    total: int = Field(examples=[20])
    by_status: Counts


class PeriodOut(Out):
    """What happened in a day, week or month. The first and the last period may be cut by the span."""

    start: date = Field(description="The first day of the period.", examples=["2030-03-01"])
    admissions: int = Field(examples=[4])
    discharges: int = Field(examples=[3])
    reports: int = Field(examples=[12])
    appointments: CountOut


class DoctorCountOut(CountOut):
    user_id: int = Field(examples=[1])
    doctor_name: str = Field(examples=["Tomás Okafor"])
    booked_minutes: int = Field(description="Minutes of the appointments that are not cancelled.", examples=[600])
    no_show_rate: float | None = Field(
        description="Of the appointments that are `completed` or `no_show`, the share of `no_show`; null if there are "
        "none.",
        examples=[0.15],
    )


class StatisticsOut(Out):
    from_: date = Field(serialization_alias="from", description="The first day.", examples=["2030-03-01"])
    to: date = Field(description="The last day.", examples=["2030-03-30"])
    by: Literal["day", "week", "month"] = Field(examples=["day"])
    patients: CountOut = Field(description="The patients at this moment, whatever the span.")
    periods: list[PeriodOut]
    appointments: CountOut = Field(description="The appointments that begin in the span.")
    doctors: list[DoctorCountOut] = Field(description="The doctors with an appointment in the span, by last name.")


class StatisticsQuery(In):
    from_: OnDay | None = Field(
        None, alias="from", description="The first day, or `today`. By default the span has 30 days."
    )
    to: Annotated[OnDay, _after_start("from_")] | None = Field(
        None, description="The last day, or `today`, which is the default."
    )
    by: Literal["day", "week", "month"] = Field("day", description="Weeks begin on Mondays.")


# --- History ---

TIME_COLUMNS = {
    column.name for table in db.metadata.tables.values() for column in table.c if isinstance(column.type, UTCDateTime)
}


class Change(Out):
    """A field's values before and after a change. The values of a password are never shown."""

    before: Any = Field(serialization_alias="from", examples=["admitted"])
    after: Any = Field(serialization_alias="to", examples=["healed"])


class HistoryOut(Out):
    id: int = Field(examples=[1])
    at: LocalTime = Field(examples=["2030-03-01T09:12:45+00:00"])
    actor_id: int | None = Field(examples=[1])
    actor_name: str | None = Field(examples=["Tomás Okafor"])
    kind: str = Field(examples=["patient"])
    record_id: int = Field(examples=[1])
    action: str = Field(examples=["change"])
    version: int | None = Field(examples=[1])
    request_id: str | None = Field(examples=["9f8e7d6c5b4a3921"])
    changes: dict[str, Change] | None = Field(  # null once the record was purged
        examples=[{"status": {"from": "admitted", "to": "healed"}}]
    )

    @property
    def records_shown(self) -> str:
        """What the access log says that the caller was shown."""
        return f"history of {self.kind} {self.record_id}"

    @field_validator("changes", mode="before")
    @classmethod
    def _read_stored_changes(cls, stored: str | None) -> dict[str, dict[str, Any]] | None:
        """Parse the JSON of an entry, and show its times, which are stored in UTC, with the clinic's offset."""
        if stored is None:
            return None
        changes: dict[str, list[Any]] = json.loads(stored)
        for name in TIME_COLUMNS & changes.keys():
            changes[name] = [time and times.shown(iso8601.read_time(time)) for time in changes[name]]
        return {name: {"before": before, "after": after} for name, (before, after) in changes.items()}


AuditKind = Literal["user", "hours", "absence", "patient", "appointment", "report", "image", "sign-in", "clinic"]


class AuditQuery(In):
    actor: Annotated[list[Id], Field(max_length=16)] = Field([], description="The users who made the changes.")
    kind: list[AuditKind] = Field([], description="The kinds of record that were changed.")
    from_: SpanStart | None = Field(None, alias="from")
    to: Annotated[LastInstant, _after_start("from_")] | None = None
    limit: Annotated[Count, Field(ge=1, le=500)] = 100
    before: Annotated[Count, Field(ge=1, le=2**63 - 1)] | None = Field(
        None, description="The id of an entry: the page has older ones. The `Link` header of the page before has it."
    )
