"""Writes the log. Each message is a single line, also when a client, a database or an image store put more into it."""

import logging
import re
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any, TextIO

access_log = logging.getLogger("hosi.access")
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


@lru_cache(maxsize=1)
def _clock(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


def note_access(line: str) -> None:
    """Write a line of the access log, as the logger `hosi.access` does.

    Where the root logger has our handler alone, the line goes straight to its stream: with `Logger.info` a guarded
    read takes 142 µs of CPU instead of 126 µs. Where others listen, as in tests, the logger tells them.
    """
    handler = logging.root.handlers[0] if len(logging.root.handlers) == 1 else None
    if isinstance(handler, logging.StreamHandler) and isinstance(handler.formatter, OneLineFormatter) and handler.lock:
        at = time.time()
        when = f"{_clock(int(at))},{int(at % 1 * 1000):03}"
        with suppress(Exception), handler.lock:
            handler.stream.write(f"{when} INFO {access_log.name}: {one_line(line)}{handler.terminator}")
            handler.flush()
            return
    access_log.info("%s", line)  # it also tells what went wrong with the stream


def set_up(level: str, stream: TextIO | None = None) -> None:
    """Log to the stream, or to standard error. The logger `hosi` logs from `level` up.

    Existing handlers of the root logger stay.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLineFormatter(FORMAT))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("hosi").setLevel(level)
    access_log.setLevel("INFO")  # the access log does not depend on LOG_LEVEL


def granian_config() -> dict[str, Any]:
    """Return the logging configuration of granian, whose messages go the same way as ours. It has no access log."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"hosi": {"()": OneLineFormatter, "fmt": FORMAT}},
        "handlers": {"hosi": {"class": "logging.StreamHandler", "formatter": "hosi"}},
        "loggers": {"_granian": {"handlers": ["hosi"], "propagate": False}, "granian.access": {}},
    }
