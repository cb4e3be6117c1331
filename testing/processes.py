"""Finds the processes of a server that runs."""

from contextlib import suppress
from pathlib import Path


def workers_of(pid: int) -> list[int]:
    """Return the process ids of the workers of `serve.py`, which runs as the process `pid`. Linux alone tells them."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found
