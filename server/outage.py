"""Logs failures of the database: the first of a row with its traceback, each further failure as a line."""

import logging
import time
from threading import Lock

from flask import g, has_app_context, has_request_context

log = logging.getLogger("hosi")

QUIET = 60  # seconds without a traceback, at least, while a row of failures goes on


def reason_of(error: Exception) -> str:
    """Return the first line of the driver's reason. The lines after it may quote a statement with its values."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0][:300]}"


class Outage:
    """Counts failures in a row, in this process. The first answer of the database ends the row."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._failures = 0
        self._last_traceback = float("-inf")

    def failed(self, error: Exception) -> None:
        """Log a failure. Outside of a request, as in a `flask` command, it has no traceback."""
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
        """End the row of failures. Does nothing in a request that failed: its connection returns to the pool, too."""
        if not self._failures or (has_app_context() and "database_failed" in g):
            return
        with self._lock:
            failures, self._failures = self._failures, 0
        if failures:
            log.warning("the database answers again, failures before: %d", failures)


outage = Outage()
