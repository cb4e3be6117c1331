"""The clinic's wall clock: its zone, its days, and the times that requests and answers have in it."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from flask import current_app

from server import iso8601

YEARS = (1850, 2200)  # first year, and the year after the last; Python's arithmetic fails beyond year 9999


def clinic_zone() -> ZoneInfo:
    """Return the clinic's time zone. Times without an offset are in it, and so is every time of an answer."""
    return ZoneInfo(current_app.config["TIMEZONE"])


def now() -> datetime:
    """Return this instant in UTC."""
    return datetime.now(UTC)


def today() -> date:
    """Return the clinic's day of this instant."""
    return day_of(now())


def day_of(instant: datetime) -> date:
    """Return the clinic's day of an instant."""
    return instant.astimezone(clinic_zone()).date()


def _in_range(year: int) -> None:
    if not YEARS[0] <= year < YEARS[1]:
        raise ValueError(f"the year must lie between {YEARS[0]} and {YEARS[1] - 1}")


def _read_time(value: object) -> date | datetime:
    """Read an ISO 8601 date, or date and time, with blanks around it. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError
    return iso8601.read(value.strip(" \t\r\n"))


def _first_instant(value: object) -> tuple[datetime, bool]:
    """Return the first instant that a time or a date means, and whether it is a date."""
    try:
        parsed = _read_time(value)
    except ValueError:
        raise ValueError("must be an ISO 8601 time, such as 2027-03-01T10:00 or 2027-03-01T07:00:00Z") from None
    _in_range(parsed.year)
    is_day = not isinstance(parsed, datetime)
    clock = parsed if isinstance(parsed, datetime) else datetime.combine(parsed, time())
    zone = clinic_zone()
    instant = (clock if clock.tzinfo else clock.replace(tzinfo=zone)).astimezone(UTC)
    local = instant.astimezone(zone)  # the form in which it is answered, and may be sent back
    _in_range(local.year)
    if clock.tzinfo is None and local.replace(tzinfo=None) != clock:
        if is_day and local.date() == parsed:
            return instant, is_day  # this day has no midnight: the clocks are put forward over it
        raise ValueError(f"there is no such time in {zone}: the clocks are put forward over it")
    return instant, is_day


def read_instant(value: object) -> datetime:
    """Read an ISO 8601 time. A naive time is the clinic's local time; a date means the first instant of that day."""
    return _first_instant(value)[0]


def read_end(value: object) -> datetime:
    """Read the last instant of a span. A date means the last instant of that day."""
    instant, is_day = _first_instant(value)
    if is_day:
        following = instant.astimezone(clinic_zone()).date() + timedelta(days=1)
        midnight = datetime.combine(following, time(), clinic_zone()).astimezone(UTC)
        return midnight - timedelta(microseconds=1)
    return instant


def read_day(value: object) -> date:
    """Read an ISO 8601 date, or a time that is midnight by its own offset or by the clinic's: browsers send both."""
    try:
        parsed = _read_time(value)
        if isinstance(parsed, datetime):
            if parsed.tzinfo and parsed.time() != time():
                _in_range(parsed.year)
                parsed = parsed.astimezone(clinic_zone())
            if parsed.time() != time():
                raise ValueError
            parsed = parsed.date()
    except ValueError:
        raise ValueError("must be an ISO 8601 date, such as 1990-05-31") from None
    _in_range(parsed.year)
    return parsed


def shown(instant: datetime) -> str:
    """Return the time with the clinic's offset. Its first 16 characters are the wall clock."""
    return instant.astimezone(clinic_zone()).isoformat()
