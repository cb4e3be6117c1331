"""Signs a checkpoint after a whole verification, and reads it for a verification of what came later."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from clinic.history import macs
from clinic.history.heads import mark_of
from clinic.history.keys import Keyring
from clinic.history.ranges import Since
from models import AuditEntry, LoginSession

_FORM = re.compile(r"([0-9]{1,18})-([0-9]{1,18})-([0-9]{8}T[0-9]{6}Z)-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{64})")


class CheckpointRefused(Exception):
    """Nothing can be verified from this checkpoint; the message says why."""


class Checkpoint(NamedTuple):
    """Says that the history of a database was whole up to an entry."""

    since: Since
    at: str  # when it was signed, in UTC
    key: str  # the beginning of the key's check value
    mark: str  # of the entry: another database has another one

    def __str__(self) -> str:
        return f"{self.since.entry}-{self.since.login}-{self.at}-{self.key}-{self.mark}"


def signed(connection: Connection, ring: Keyring, settled: int) -> str:
    """Return a checkpoint at the entry `settled` of a whole history. No entry before it can still come."""
    login = connection.scalar(select(func.coalesce(func.max(LoginSession.id), 0))) or 0
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    key = ring.periods[-1].check[:16]
    checkpoint = str(Checkpoint(Since(settled, login), at, key, mark_of(connection, settled)))
    return f"{checkpoint}-{macs.of_checkpoint(ring.newest_secret, checkpoint)}"


def read(connection: Connection, ring: Keyring, line: str) -> Checkpoint:
    """Return the checkpoint of a line. Raises `CheckpointRefused` unless it is one of this database and this key."""
    match = _FORM.fullmatch(line.strip())
    if match is None:
        raise CheckpointRefused(f"{line} is no checkpoint: give what `flask audit verify --checkpoint` printed.")
    entry, login, at, key, mark, mac = match.groups()
    checkpoint = Checkpoint(Since(int(entry), int(login)), at, key, mark)
    if key in [period.check[:16] for period in ring.periods[:-1]]:
        raise CheckpointRefused("The checkpoint is older than the key of the history. Verify the whole history.")
    if key != ring.periods[-1].check[:16]:
        raise CheckpointRefused("The checkpoint is of another database: it was signed with another AUDIT_KEY.")
    if not macs.same(mac, macs.of_checkpoint(ring.newest_secret, str(checkpoint))):
        raise CheckpointRefused("The checkpoint is forged or was copied wrongly: its signature does not fit.")
    newest = connection.scalar(select(func.coalesce(func.max(AuditEntry.id), 0))) or 0
    if newest < checkpoint.since.entry:
        raise CheckpointRefused(
            f"The checkpoint is newer than the database: it was made at entry {entry}, "
            f"and the database ends at entry {newest}."
        )
    if mark_of(connection, checkpoint.since.entry) != mark:
        raise CheckpointRefused(f"The checkpoint is of another database, or its entry {entry} was changed or removed.")
    return checkpoint
