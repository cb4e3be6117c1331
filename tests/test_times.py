"""Every time and date of a request is read by the same exact grammar of ISO 8601."""

import random
import string
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from client import Client, assert_refused
from factories import make_patient

from server import iso8601
from server.times import writer

NOT_TIMES = {
    "a fraction of an hour": "2026-03-01T10.30",
    "a fraction of an hour with a comma": "2026-03-01T10,5",
    "a fraction of a minute": "2026-03-01T10:30.5",
    "a fourth number": "2026-03-01T09:30:15:5",
    "decimals without a sign": "2026-03-01T103045123",
    "a sign without decimals": "2026-03-01T10:30:00.+05:00",
    "a sign without decimals at the end": "2026-03-01T10:30:00.",
    "ten decimals": "2026-03-01T10:30:00.1234567891",
    "two signs of decimals": "2026-03-01T10:30:00.5.5",
    "an offset of eight digits": "2026-03-01T10:30+03000000",
    "an offset with decimals": "2026-03-01T10:30+03:00:00.5",
    "an offset of one digit": "2026-03-01T10:30+3",
    "an offset of three digits": "2026-03-01T10:30+030",
    "an offset of 24 hours": "2026-03-01T10:30+24:00",
    "an offset of 60 minutes": "2026-03-01T10:30+03:60",
    "an offset without an hour": "2026-03-01T10:30+",
    "an offset after Z": "2026-03-01T10:30Z+03",
    "two offsets": "2026-03-01T10:30+03+03",
    "a minus sign of typographers": "2026-03-01T10:30−03:00",
    "a small z": "2026-03-01T10:30z",
    "a small t": "2026-03-01t10:30",
    "a zone's name": "2026-03-01T10:30 EAT",
    "a blank before the offset": "2026-03-01T10:30 +03:00",
    "two blanks": "2026-03-01  10:30",
    "T and a blank": "2026-03-01T 10:30",
    "T alone": "2026-03-01T",
    "T and Z": "2026-03-01TZ",
    "a date with an offset": "2026-03-01Z",
    "24 o'clock": "2026-03-01T24:00",
    "60 minutes": "2026-03-01T10:60",
    "60 seconds": "2026-03-01T10:30:60",
    "one digit of an hour": "2026-03-01T9:30",
    "one digit of a minute": "2026-03-01T10:3",
    "a colon at the end": "2026-03-01T10:30:",
    "a point for the colon": "2026-03-01T10:30.00",
    "both forms": "2026-03-01T1030",
    "both forms, the other way": "20260301T10:30",
    "one hyphen": "2026-0301T10:30",
    "slashes": "2026/03/01 10:30",
    "a week": "2026-W09-3",
    "a day of the year": "2026-060",
    "a month": "2026-03",
    "a year": "2026",
    "month 13": "2026-13-01",
    "day 0": "2026-03-00",
    "29 February": "2026-02-29",
    "a year of six digits": "+002026-03-01",
    "digits of another script": "٢٠٣٤-03-01T10:30",
    "a full-width digit": "2026-03-01T1０:30",
    "a separator between": "2026-03-01T10:30\x1f",
    "20,000 digits": "2026-03-01T" + "1" * 20_000,
    "20,000 decimals": "2026-03-01T10:30:00." + "1" * 20_000,
    "20,000 hyphens": "2026" + "-" * 20_000,
}

NO_SUCH = {
    "2026-03-01T24:00": "There is no time 24:00.",
    "2026-03-01T10:60": "There is no time 10:60.",
    "2026-03-01T10:30:60": "There is no time 10:30:60.",
    "2026-13-01": "There is no month 13.",
    "2026-03-00": "There is no 0 March 1994.",
    "2026-02-29": "There is no 29 February 1994.",
    "2026-03-01T10:30+24:00": "There is no offset +24:00.",
    "2026-03-01T10:30+03:60": "There is no offset +03:60.",
}
_EITHER = "2027-03-01T10:00 or 2027-03-01T07:00:00Z"
LABELS = {
    "admitted_at": ("time of admission", _EITHER),
    "discharged_at": ("time of discharge", _EITHER),
    "date_of_birth": ("birth date", "1990-05-31"),
}
TIMES = {
    "2026-03-01": "2026-03-01T00:00:00+00:00",
    "20260301": "2026-03-01T00:00:00+00:00",
    "2026-03-01T10": "2026-03-01T10:00:00+00:00",
    "2026-03-01 10:00": "2026-03-01T10:00:00+00:00",
    "2026-03-01T10:30:15": "2026-03-01T10:30:15+00:00",
    "2026-03-01T10:30:15.5": "2026-03-01T10:30:15.500000+00:00",
    "2026-03-01T10:30:15,250Z": "2026-03-01T10:30:15.250000+00:00",
    "2026-03-01T10:30:15.123456789Z": "2026-03-01T10:30:15.123456+00:00",
    "2026-03-01T10+03": "2026-03-01T07:00:00+00:00",
    "2026-03-01T10:30+0300": "2026-03-01T07:30:00+00:00",
    "2026-03-01T10:30-00:30": "2026-03-01T11:00:00+00:00",
    "2026-03-01T10:30-00:00": "2026-03-01T10:30:00+00:00",
    "20260301T10": "2026-03-01T10:00:00+00:00",
    "20260301T1030Z": "2026-03-01T10:30:00+00:00",
    "20260301 103015.250-0530": "2026-03-01T16:00:15.250000+00:00",
    "20260301T103015+03:00": "2026-03-01T07:30:15+00:00",
    " 2026-03-01T10:00 ": "2026-03-01T10:00:00+00:00",
    "1920-05-01T10:00:00-00:44:30": "1920-05-01T10:44:30+00:00",
}


@pytest.mark.parametrize("written", NOT_TIMES.values(), ids=NOT_TIMES)
def test_what_the_grammar_does_not_have_is_refused_in_every_field(doctor: Client, written: str) -> None:
    patient = make_patient(doctor)["id"]
    booking = {"patient_id": patient, "appointment_datetime": written}
    assert_refused(doctor.post("/appointment", booking), 422, "appointment_datetime")
    for field in ("admitted_at", "discharged_at", "date_of_birth"):
        refused = doctor.patch(f"/patient/{patient}", {field: written.replace("2026", "1994")})
        assert_refused(refused, 422, field)
        label, example = LABELS[field]
        sentences = (f"Please write the {label} as {example}.", NO_SUCH.get(written))
        assert refused.json["msg"] in sentences
    if len(written) < 100:
        for path, field in (("patients", "admitted_from"), ("appointment", "to"), ("reports", "from")):
            assert_refused(doctor.get(f"/{path}?{urlencode({field: written})}"), 422, field)


@pytest.mark.parametrize(("written", "answered"), TIMES.items(), ids=TIMES)
def test_what_the_grammar_has_is_the_instant_that_it_says(doctor: Client, written: str, answered: str) -> None:
    assert make_patient(doctor, admitted_at=written)["admitted_at"] == answered


@pytest.mark.parametrize(
    "written", ["1994-03-01", "19940301", " 1994-03-01 ", "1994-03-01T00:00:00.000Z", "1994-03-01 00:00", "19940301T00"]
)
def test_a_date_may_be_written_as_its_midnight(doctor: Client, written: str) -> None:
    assert make_patient(doctor, date_of_birth=written)["date_of_birth"] == "1994-03-01"


def test_an_old_offset_with_seconds_may_be_sent_back(doctor: Client, at_home: Callable[[Client, str], Client]) -> None:
    there = at_home(doctor, "Africa/Monrovia")  # 44 minutes and 30 seconds behind, until 1972
    patient = make_patient(there, admitted_at="1970-05-01T10:00:00")
    again = there.patch(f"/patient/{patient['id']}", patient)
    assert (again.status_code, again.json["admitted_at"]) == (200, "1970-05-01T10:00:00-00:44:30")


def test_a_million_digits_cost_nothing() -> None:
    def seconds(text: str) -> float:
        began = time.perf_counter()
        with pytest.raises(ValueError, match="ISO 8601"):
            iso8601.read(text)
        return time.perf_counter() - began

    for text in ("2026-03-01T" + "1" * 1_000_000, "1" * 1_000_000, "2026-03-01T10:30:00." + "0" * 1_000_000):
        assert min(seconds(text) for _ in range(5)) < 0.001


# --- Random texts. What the grammar has is told here in another way: by a list of all its shapes ---

OFFSETS = ("", "Z", "+00", "+0000", "+00:00", "+00:00:00")


def shapes() -> set[str]:
    """Every text of the grammar, with a 0 for each digit and a + for each sign of an offset."""
    found = set()
    for day, colon in (("0000-00-00", ":"), ("00000000", "")):
        found.add(day)
        clocks = ["00", f"00{colon}00", f"00{colon}00{colon}00"]
        clocks += [f"{clocks[-1]}{sign}{'0' * count}" for sign in ".," for count in range(1, 10)]
        found |= {f"{day}{sign}{clock}{offset}" for sign in "T " for clock in clocks for offset in OFFSETS}
    return found


SHAPES = sorted(shapes())
ALL_SHAPES = frozenset(SHAPES)


def shape_of(text: str) -> str:
    """The shape of a text: each ASCII digit is a 0, and a minus that begins an offset is a plus."""
    masked = "".join("0" if sign in string.digits else sign for sign in text)
    head, minus, tail = masked.rpartition("-")
    return f"{head}+{tail}" if minus and len(head) > 10 else masked


def written(random_: random.Random) -> tuple[str, date | datetime]:
    """A random text of the grammar, and what it means."""
    shape = random_.choice(SHAPES)
    instant = datetime(random_.randint(1850, 2199), 1, 1) + timedelta(  # noqa: DTZ001  # naive on purpose
        days=random_.randrange(366), seconds=random_.randrange(86_400)
    )
    decimals = f"{random_.randrange(10**9):09}"
    digits = iter(f"{instant:%Y%m%d%H%M%S}{decimals}")
    sign, away = random_.choice("+-"), [random_.randrange(24), random_.randrange(60), random_.randrange(60)]
    clock, plus, offset = shape.partition("+")
    text = "".join(next(digits) if place == "0" else place for place in clock)
    if len(shape) <= 10:
        return text, instant.date()
    numbers = [part for part in (offset.replace(":", "")[n : n + 2] for n in (0, 2, 4)) if part]
    text += "".join([sign, (":" if ":" in offset else "").join(f"{n:02}" for n in away[: len(numbers)])] * bool(plus))
    places = sum(place == "0" for place in clock)
    kept = {10: instant.replace(minute=0, second=0), 12: instant.replace(second=0)}.get(places, instant)
    kept = kept.replace(microsecond=int(decimals[: max(0, places - 14)].ljust(6, "0")[:6]))
    hours, minutes, seconds = [*away[: len(numbers)], 0, 0, 0][:3]
    distance = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if plus:
        return text, kept.replace(tzinfo=timezone(distance if sign == "+" else -distance))
    return text, kept.replace(tzinfo=UTC) if clock.endswith("Z") else kept


@pytest.mark.parametrize("seed", range(5))
def test_every_text_of_the_grammar_is_the_instant_that_it_says(seed: int) -> None:
    random_ = random.Random(seed)
    for _ in range(4_000):
        text, meant = written(random_)
        found = iso8601.read(text)
        assert (type(found), found) == (type(meant), meant), text
        assert shape_of(text) in ALL_SHAPES, text


def mutated(text: str, random_: random.Random) -> str:
    """The text with one to three of its characters changed, removed, doubled, or others put between."""
    signs = string.digits + "TtZz:.,+- W\n\0é٣/"
    for _ in range(random_.randint(1, 3)):
        place = random_.randrange(len(text) + 1)
        text = random_.choice(
            [
                text[:place] + random_.choice(signs) + text[place:],
                text[:place] + random_.choice(signs) + text[place + 1 :],
                text[:place] + text[place + 1 :],
                text[:place] + text[place - 1 :],
            ]
        )
    return text


@pytest.mark.parametrize("seed", range(5))
def test_every_text_that_is_not_of_the_grammar_is_refused(seed: int) -> None:
    random_ = random.Random(seed)
    refused = 0
    for _ in range(10_000):
        text = mutated(written(random_)[0], random_)
        try:
            iso8601.read(text)
        except ValueError:
            refused += 1
        else:
            assert shape_of(text) in ALL_SHAPES, text
    assert refused > 5_000


ZONES = {
    "no offset": "UTC",
    "whole hours": "Africa/Nairobi",
    "a change of the clocks": "Europe/Berlin",
    "a change at midnight": "Africa/Cairo",
    "half hours": "Asia/Kolkata",
    "half hours and a change": "America/St_Johns",
    "a change by half an hour": "Australia/Lord_Howe",
    "three quarters of an hour": "Asia/Kathmandu",
    "seconds, until 1972": "Africa/Monrovia",
    "a day left out": "Pacific/Apia",
}


@pytest.mark.parametrize("name", ZONES.values(), ids=ZONES)
def test_a_stored_time_is_written_as_python_writes_it(name: str) -> None:
    zone, random_ = ZoneInfo(name), random.Random(7)
    write = writer(zone)
    years = (datetime(2200, 1, 1, tzinfo=UTC) - datetime(1850, 1, 1, tzinfo=UTC)).days
    times = [
        datetime(1850, 1, 1, tzinfo=UTC)
        + timedelta(days=random_.randrange(years), seconds=random_.randrange(86_400), microseconds=micro)
        for micro in (0, 500_000, 123_456, 7, 999_999)
        for _ in range(1_000)
    ]
    hours = (datetime(2011, 1, 1, tzinfo=UTC) + timedelta(hours=number) for number in range(3 * 366 * 24))
    for hour in hours:  # around each change of the clocks: each minute
        if hour.astimezone(zone).utcoffset() != (hour + timedelta(hours=1)).astimezone(zone).utcoffset():
            times += [hour + timedelta(minutes=minute, seconds=59) for minute in range(-90, 150)]
    for time_ in times:
        expected = time_.astimezone(zone).isoformat()
        on_sqlite = time_.replace(tzinfo=None).isoformat(" ", "microseconds")
        on_postgresql = on_sqlite.rstrip("0").rstrip(".") if time_.microsecond else on_sqlite[:19]
        assert write([on_sqlite, None, on_postgresql]) == [expected, None, expected]
