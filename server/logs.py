"""Writes the log. Each message is a single line, also when a client, a database or an image store put more into it."""

import logging
import re
from typing import Any

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Control characters except the newline, Unicode line ends, direction overrides, lone surrogates
_CONTROLS = "\0-\t\v-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE, _UNSAFE_IN_TRACEBACK = re.compile(f"[\n{_CONTROLS}]"), re.compile(f"[{_CONTROLS}]")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of Flask's development server, which escapes the request itself


def one_line(text: str) -> str:
    """Return the text with its control characters escaped: a newline becomes `\\n` (CWE-117)."""
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class OneLineFormatter(logging.Formatter):
    """Formats a message as one line. Lines of a traceback are indented, so that they do not look like messages."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, then its traceback."""
        record.exc_text = None  # another handler's formatter may have cached its text here
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message in one line."""
        line = super().formatMessage(record)
        if record.name == "werkzeug":
            line = _COLOURS.sub("", line).replace("\n * Running on", " Running on")  # its greeting has two lines
        return one_line(line)

    def formatException(self, ei: Any) -> str:
        """Return the indented traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """Return the indented stack."""
        return _indented(super().formatStack(stack_info))


def _indented(lines: str) -> str:
    return "  " + _UNSAFE_IN_TRACEBACK.sub(_escape, lines).replace("\n", "\n  ")


def set_up(level: str) -> None:
    """Log to standard error. The logger `hosi` logs from `level` up. Existing handlers of the root logger stay."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter(FORMAT))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("hosi").setLevel(level)
    logging.getLogger("hosi.access").setLevel("INFO")  # the access log does not depend on LOG_LEVEL


def granian_config() -> dict[str, Any]:
    """Return the logging configuration of granian, whose messages go the same way as ours. It has no access log."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"hosi": {"()": OneLineFormatter, "fmt": FORMAT}},
        "handlers": {"hosi": {"class": "logging.StreamHandler", "formatter": "hosi"}},
        "loggers": {"_granian": {"handlers": ["hosi"], "propagate": False}, "granian.access": {}},
    }
