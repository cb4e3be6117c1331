"""Has the folder that the processes of one server share while it runs: their figures, and that it is about to stop.

The folder is new at each start. A folder that a killed server left is removed at the next start.
"""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is left to remove
    fcntl = None  # type: ignore[assignment]

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus-client looks for the folder when it is imported
PREFIX = "hosi-server-"
HELD = "held"  # a file that the main process locks for as long as it lives
DRAINING = "draining"


def make_folder() -> None:
    """Make the folder of this server, for all processes that this one starts. Call it once, in the main process."""
    _remove_left_folders()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
    os.environ[FOLDER] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if fcntl:
        held = (folder / "starting").open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
        atexit.register(held.close)  # the lock lives as long as the process
        (folder / "starting").rename(folder / HELD)


def _remove_left_folders() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{HELD}") if fcntl else ():
        with suppress(OSError), path.open() as held:  # another user's, or a server that runs
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)


def folder() -> Path | None:
    """Return the folder; None where one process serves, as with `flask run`."""
    path = os.environ.get(FOLDER)
    return Path(path) if path else None


def start_draining() -> None:
    """Tell all processes that the server is about to stop."""
    if shared := folder():
        (shared / DRAINING).touch()


def is_draining() -> bool:
    """Return whether the server is about to stop."""
    shared = folder()
    return shared is not None and (shared / DRAINING).exists()
