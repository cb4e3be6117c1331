"""Reads dates and times by one exact grammar of ISO 8601.

The grammar is the profile of RFC 3339, section 5.6, with three additions. A blank may stand for the T. Seconds, minutes
and offset are optional. The basic form (`20270301T1000`) is read, too. `datetime.fromisoformat` is not exact: between
the minutes and the offset it ignores characters that it does not understand.
"""

import re
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
LONGEST = len("1920-01-01T00:00:00.123456789-00:44:30")
PATTERN = r"^\d{4}-?\d\d-?\d\d([T ][\d:.,]+(Z|[+-][\d:]+)?)?$"  # wider than the grammar, for the OpenAPI document


class NotInCalendar(ValueError):
    """The text is well-formed, but there is no such day or time. The message is a sentence that names it."""


def _grammar(dash: str, colon: str) -> re.Pattern[str]:
    decimals = r"(?:[.,](\d{1,9}))?"  # of a second
    clock = rf"(\d\d)(?:{colon}(\d\d)(?:{colon}(\d\d){decimals})?)?"
    # Zones had offsets with seconds until 1972, so our answers may have them. RFC 3339 has no such offsets.
    offset = r"Z|[+-]\d\d(?::?\d\d|:\d\d:\d\d)?"
    return re.compile(rf"(\d{{4}}){dash}(\d\d){dash}(\d\d)(?:[T ]{clock}({offset})?)?", re.ASCII)


_EXTENDED, _BASIC = _grammar("-", ":"), _grammar("", "")


def _parts(text: str) -> tuple[str, ...]:
    match = len(text) <= LONGEST and (_EXTENDED.fullmatch(text) or _BASIC.fullmatch(text))
    if not match:
        raise ValueError("not a date or time of ISO 8601")
    return match.groups()


def unit(text: str) -> timedelta:
    """Return the smallest unit that a text names: a day, a minute, a second or a decimal of a second.

    Of `T10` the unit is a minute: the text means the full hour. Raises ValueError as `read` does.
    """
    _, _, _, hour, _, second, decimals, _ = _parts(text)
    if hour is None:
        return timedelta(days=1)
    if second is None:
        return timedelta(minutes=1)
    return timedelta(microseconds=10 ** max(0, 6 - len(decimals or "")))


def read(text: str) -> date | datetime:
    """Return a date for a text without a time of day, else a datetime. Without an offset, the datetime is naive.

    Decimals beyond microseconds are cut off. Raises ValueError for a text outside of the grammar, and `NotInCalendar`.
    """
    year, month, day, hour, minute, second, decimals, offset = _parts(text)
    parsed = _day(int(year), int(month), int(day))
    if hour is None:
        return parsed
    microsecond = (decimals or "").ljust(6, "0")[:6]
    try:
        clock = time(int(hour), int(minute or 0), int(second or 0), int(microsecond))
    except ValueError:
        raise NotInCalendar(f"There is no time {':'.join(filter(None, (hour, minute or '00', second)))}.") from None
    return datetime.combine(parsed, clock, _zone(offset) if offset else None)


def _day(year: int, month: int, day: int) -> date:
    try:
        return date(year, month, day)
    except ValueError:
        if not 1 <= month <= len(MONTHS):
            raise NotInCalendar(f"There is no month {month}.") from None
        raise NotInCalendar(f"There is no {day} {MONTHS[month - 1]} {year}.") from None


def read_time(text: str) -> datetime:
    """Return the datetime of a text. Raises ValueError as `read` does, and for a date without a time of day."""
    found = read(text)
    if not isinstance(found, datetime):
        raise ValueError("a date without a time of day")
    return found


def _zone(offset: str) -> tzinfo:
    if offset == "Z":
        return UTC
    digits = offset[1:].replace(":", "").ljust(6, "0")
    hours, minutes, seconds = int(digits[:2]), int(digits[2:4]), int(digits[4:])
    if hours > 23 or minutes > 59 or seconds > 59:
        raise NotInCalendar(f"There is no offset {offset}.")
    distance = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return timezone(-distance if offset[0] == "-" else distance)
