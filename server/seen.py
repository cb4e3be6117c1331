"""Counts each request and writes its line of the log, once it is answered."""

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from werkzeug.routing import Rule

from server import logs, metrics

BEGAN = "hosi.began"  # the key of the environ for when the request was whole, by time.perf_counter()
USER = "hosi.user"  # the key for the id of the user who sent it
RULE = "hosi.rule"  # the key for the rule of its route

_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_WORD = re.compile(r"/[a-z-]{1,20}", re.ASCII)


def request_id_of(given: str) -> str:
    """Return the id that a proxy gave the request, or a new one."""
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def path_of(path: str, rule: Rule | None = None) -> str:
    """Return what the log may tell of a path. Ids are told, and a key of an image is not: it is half of its link.

    Of a path that has no route only the beginning is told. A client may have put anything there, a search text say.
    """
    if rule is not None:
        converters: Mapping[str, Any] = rule._converters
        return path if all(hasattr(one, "is_told") for one in converters.values()) else rule.rule
    word = _WORD.match(path)
    return word[0] if word and word[0] == path else f"{word[0] if word else '/'}…"


def note(environ: Mapping[str, Any], request_id: str, status: int, size: int) -> None:
    """Count a request that is answered with so many bytes, and write its line."""
    seconds = time.perf_counter() - environ[BEGAN]
    rule: Rule | None = environ.get(RULE)
    method, route = environ["REQUEST_METHOD"], rule.rule if rule else ""
    metrics.count_request(method, route, status, seconds)
    logs.answered.write(
        request_id,
        environ.get("REMOTE_ADDR") or "-",
        environ.get(USER, "-"),
        method[:20],
        route or "-",
        path_of(environ["PATH_INFO"], rule),
        status,
        size,
        round(seconds * 1000, 1),
    )


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
