"""Refuses to serve or write while `AUDIT_KEY` or `TIMEZONE` does not fit the database."""

from collections.abc import Callable, Iterable

from flask import Flask, current_app, request

from clinic import timezone
from clinic.history import keys
from config import ConfigError

CHECKS = (keys.check_audit_key, timezone.check_timezone)


def stop_on_wrong_settings(checks: Iterable[Callable[[], bool]] = CHECKS) -> None:
    """End the process with a sentence if a setting does not fit. Servers call it before they serve; commands, too."""
    try:
        for check in checks:
            check()
    except (keys.WrongAuditKey, timezone.WrongTimezone) as error:
        raise ConfigError(error.msg) from None


def _check_at_first_request() -> None:
    """Check until the settings are known to fit: a database may be away, or without a zone yet."""
    if current_app.extensions.get("settings_fit"):
        return
    contract = getattr(current_app.view_functions.get(request.endpoint or ""), "contract", None)
    if contract and contract.uses_database:
        current_app.extensions["settings_fit"] = all(check() for check in CHECKS)


def init_app(app: Flask) -> None:
    """Check the settings at the first requests of a process that use the database."""
    app.before_request(_check_at_first_request)
