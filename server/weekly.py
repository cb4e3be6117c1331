"""Weekly hours on the clinic's clocks, and the spans of instants that they are.

An instant is a number of seconds since 1970, and a span is a pair of instants. Hours that touch are one span, across
midnight too. An hour in a gap of the clocks begins and ends where the gap ends. Of a repeated hour the first begins and
the second ends.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time
from functools import lru_cache

from config import END_OF_DAY
from server.times import DAY, clinic_zone, day_of, instant_of, start_of

Hours = Sequence[tuple[int, int, int]]  # the weekday from Monday 0, the first minute of the day, the minute of the end
Span = tuple[int, int]
WEEK = 7


@lru_cache(maxsize=16_384)
def _instant(_zone: str, day: date, minute: int, last: bool) -> int:
    """Return the instant at which the clinic's clocks show this minute of the day. The end of a day is the next day."""
    if minute == END_OF_DAY:
        return int(start_of(day + DAY).timestamp())
    return int(instant_of(datetime.combine(day, time(*divmod(minute, 60))), last=last).timestamp())


def spans(hours: Hours, first: date, last: date, cut_at: int | None = None) -> Iterator[Span]:
    """Yield the spans from the first day to the last, in their order. None touches or overlaps another.

    With `cut_at`, a weekday, a new span begins at the start of that day, even if it touches the one before.
    """
    zone = clinic_zone().key
    of_weekday: list[list[tuple[int, int]]] = [[] for _ in range(WEEK)]
    for weekday, starts, ends in sorted(hours):
        of_weekday[weekday].append((starts, ends))
    begun: Span | None = None
    for number in range((last - first).days + 1):
        day = first + number * DAY
        if begun and day.weekday() == cut_at:
            yield begun
            begun = None
        for starts, ends in of_weekday[day.weekday()]:
            start, end = _instant(zone, day, starts, False), _instant(zone, day, ends, True)
            if end <= start:  # the clocks are put forward over these hours
                continue
            if begun and start <= begun[1]:
                begun = begun[0], max(begun[1], end)
                continue
            if begun:
                yield begun
            begun = start, end
    if begun:
        yield begun


def covers(hours: Hours, start: datetime, end: datetime) -> bool:
    """Return whether the time lies within the hours."""
    first, last = int(start.timestamp()), int(end.timestamp())
    days = day_of(start) - DAY, day_of(end) + DAY
    return any(begins <= first and last <= ends for begins, ends in spans(hours, *days))


def around_the_clock(hours: Hours) -> bool:
    """Return whether the hours leave out no minute of the week."""
    return sum(ends - starts for _, starts, ends in hours) == WEEK * END_OF_DAY


def cross_midnight(hours: Hours) -> bool:
    """Return whether hours end with a day, so that they may touch the hours of the next day."""
    return any(ends == END_OF_DAY for *_, ends in hours)


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return the spans in their order, those that touch or overlap as one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def without(spans: Iterable[Span], busy: Sequence[Span]) -> Iterator[Span]:
    """Yield the parts of the spans that no busy span covers, in their order. Both are in their order, and disjoint."""
    place = 0
    for start, end in spans:
        while place < len(busy) and busy[place][1] <= start:
            place += 1
        while place < len(busy) and busy[place][0] < end:
            if busy[place][0] > start:
                yield start, busy[place][0]
            start = busy[place][1]
            if start >= end:
                break
            place += 1
        if start < end:
            yield start, end
