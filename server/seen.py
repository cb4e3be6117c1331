"""Counts each request and writes its line of the log, once it is answered."""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from werkzeug.routing import Rule

from server import logs, metrics

BEGAN = "hosi.began"  # the key of the environ for when the request was whole, by time.perf_counter()
USER = "hosi.user"  # the key for the id of the user who sent it
RULE = "hosi.rule"  # the key for the rule of its route
SHOWN = "hosi.shown"  # the key for a list of the records that its answer shows, in words

_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_WORD = re.compile(r"/[a-z-]{1,20}", re.ASCII)


def request_id_of(given: str) -> str:
    """Return the id that a proxy gave the request, or a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"  # no secret


def path_of(path: str, rule: Rule | None = None) -> str:
    """Return what the log may tell of a path. Ids are told, and a key of an image is not: it is half of its link.

    Of a path that has no route only the beginning is told. A client may have put anything there, a search text say.
    """
    if rule is not None:
        for converter in rule._converters.values():
            if not hasattr(converter, "is_told"):
                return rule.rule
        return "/" + path.lstrip("/")  # as Werkzeug matches it
    word = _WORD.match(path)
    return word[0] if word and word[0] == path else f"{word[0] if word else '/'}…"


def note(environ: Mapping[str, Any], request_id: str, status: int, size: int) -> None:
    """Count a request that is answered with so many bytes, and write its lines."""
    seconds = time.perf_counter() - environ[BEGAN]
    rule: Rule | None = environ.get(RULE)
    method, route = environ["REQUEST_METHOD"].upper(), rule.rule if rule else ""
    path = path_of(environ["PATH_INFO"], rule)
    user, address = environ.get(USER, "-"), environ.get("REMOTE_ADDR") or "-"
    metrics.count_request(method, route, status, seconds)
    milliseconds = round(seconds * 1000, 1)
    answered = request_id, address, user, method[:20], route or "-", path, status, size, milliseconds
    if shown := environ.get(SHOWN):
        access = request_id, f"user {user} {method} {path}", ", ".join(shown)
        logs.write((logs.access, access), (logs.answered, answered))
    else:
        logs.write((logs.answered, answered))


class Counted:
    """The pieces of an answer whose length is not known before. `then` gets the length when the answer is closed."""

    def __init__(self, pieces: Iterable[bytes], then: Callable[[int], None]) -> None:
        self._pieces, self._then, self._size = pieces, then, 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._size += len(piece)
            yield piece

    def close(self) -> None:
        """Close the answer."""
        try:
            getattr(self._pieces, "close", lambda: None)()
        finally:
            self._then(self._size)
