"""The log of the database's failures: the first in a row has a traceback, the next ones have a line each."""

import logging
import time
from threading import Lock

from flask import g, has_app_context, has_request_context

log = logging.getLogger("hosi")

QUIET = 60  # seconds: a row that goes on for longer has another traceback


def reason_of(error: Exception) -> str:
    """Return the driver's reason in one line, without the lines after it, which may quote a statement."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0][:300]}"


class Outage:
    """A row of failures in this process. The first answer of the database ends it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._failures = 0
        self._last_traceback = float("-inf")

    def failed(self, error: Exception) -> None:
        """Log one failure. Outside of a request, in a `flask` command, it has no traceback."""
        if has_app_context():
            g.database_failed = True
        with self._lock:
            self._failures += 1
            failures = self._failures
            in_full = has_request_context() and (failures == 1 or time.monotonic() - self._last_traceback >= QUIET)
            if in_full:
                self._last_traceback = time.monotonic()
        reason = reason_of(error)
        log.error(
            "the database did not answer, failure %d in a row: %s",
            failures,
            reason,
            exc_info=error if in_full else None,
        )

    def ended(self) -> None:
        """End the row: the database answered. A request that failed ends nothing when it returns its connection."""
        if not self._failures or (has_app_context() and "database_failed" in g):
            return
        with self._lock:
            failures, self._failures = self._failures, 0
        if failures:
            log.warning("the database answers again, failures before: %d", failures)


outage = Outage()
