"""Verifies the record history: finds entries and heads that somebody changed, removed or inserted by hand."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, func, select

from clinic.history import checkpoints, heads, keys, macs
from clinic.history.chain import KINDS, SIGN_INS
from clinic.history.keys import Keyring
from clinic.history.ranges import Range, Since, faults_of_sign_ins
from clinic.history.snapshots import meanwhile, snapshot
from clinic.history.workers import Team, team
from models import AuditEntry, AuditHead

WORTH_PROCESSES = 100_000  # entries; processes take a second to start
MOST_PROCESSES = 8
CHAINS = 20_000  # in a range
BATCH = 500  # chains that are chosen by their ids


@contextmanager
def reading(processes: int | None = None) -> Iterator[tuple[Connection, Keyring, Team]]:
    """Yield a connection that sees one state of the database, its keys, and the processes that verify it.

    Without `processes` there is one for each core, or none if the history is short.
    """
    with snapshot() as connection:
        if processes is None:
            many = (connection.scalar(select(func.max(AuditEntry.id))) or 0) > WORTH_PROCESSES
            processes = min(_cores(), MOST_PROCESSES) if many else 1
        with team(connection, processes if processes > 1 else 0) as together:
            yield connection, keys.keyring(connection), together


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def verify(
    head: str | None = None, processes: int | None = None, keep: Callable[[str], None] | None = None
) -> Iterator[str]:
    """Yield a sentence for each chain with a fault, in constant memory. Takes no lock.

    `head` is an earlier result of `heads.head_of_all`. With it, an older copy of the whole database is found, too.
    `keep` is called with a checkpoint if there is no fault. Raises `WrongAuditKey`: with a wrong key every chain would
    seem to have a fault. Raises `StillWriting` if a checkpoint cannot be made now.
    """
    settled = heads.settled_id() if keep else 0
    with reading(processes) as (connection, ring, together):
        keys.require_current(ring)
        if head is not None and (told := _lacks(connection, head, heads.require_entries)):
            yield told
            return
        whole = True
        for fault in faults(connection, ring, together):
            whole = False
            yield fault
        if head is not None and (told := _lacks(connection, head, heads.require_digest)):
            whole = False
            yield told
        if keep and whole:
            keep(checkpoints.signed(connection, ring, settled))


def _lacks(connection: Connection, head: str, require: Callable[[Connection, heads.Head], None]) -> str:
    """Return what the database lacks of a head, or ""."""
    try:
        require(connection, heads.read(head))
    except heads.HeadRefused as refused:
        return str(refused)
    return ""


def faults(connection: Connection, ring: Keyring, together: Team) -> Iterator[str]:
    """Yield a sentence for each chain with a fault, and for each key whose seal is broken."""
    parts = [Range(SIGN_INS[0])]  # may take long, so it begins first
    for kind in _kinds(connection):
        if not _is_word(kind):
            yield f"There is history of a kind that is none: {kind!a}."
        elif kind != SIGN_INS[0]:
            parts += _ranges(connection, kind)
    yield from together.faults(ring, parts)
    for number, period in enumerate(ring.periods[1:], 2):
        secret, head = ring.secret(number), f"{period.after}-{heads.digest_up_to(connection, period.after)}"
        if secret is None or not macs.same(period.seal, macs.of_seal(secret, number, head)):
            yield f"Entries up to {period.after} are not those that key number {number} sealed."


def _kinds(connection: Connection, since: Since | None = None) -> list[str]:
    """Return the kinds of all records, entries and heads, also kinds that this server never writes."""
    kinds, newer = set(KINDS), [AuditEntry.id > since.entry] if since else []
    kinds.update(connection.scalars(select(AuditEntry.kind).where(*newer).distinct()))
    if since is None:
        kinds.update(connection.scalars(select(AuditHead.kind).distinct()))
    return sorted(kinds, key=str)


def _is_word(kind: Any) -> bool:
    """Return whether a kind can be bound in a query and printed: a SQLite column may hold any value."""
    return isinstance(kind, str) and kind.isascii() and kind.isprintable()


def _ranges(connection: Connection, kind: str) -> list[Range]:
    """Return ranges that hold all chains of a kind, also those without a head."""
    number = func.row_number().over(order_by=AuditHead.record_id).label("number")
    numbered = select(AuditHead.record_id, number).where(AuditHead.kind == kind).subquery()
    bounds = select(numbered.c.record_id).where(numbered.c.number % CHAINS == 0).order_by(numbered.c.record_id)
    whole = [bound for bound in connection.scalars(bounds) if isinstance(bound, int)]
    return [Range(kind, low, high) for low, high in pairwise([None, *whole, None])]


# --- Since a checkpoint ---


def verify_since(line: str, processes: int | None = None) -> Iterator[str]:
    """Yield a sentence for each chain with a fault among those that have entries since the checkpoint.

    Sign-ins are verified from the checkpoint on, other chains as a whole. An entry of another chain that was changed
    since is not seen; one that was removed is. Raises `WrongAuditKey` and `CheckpointRefused`.
    """
    with reading(processes or 1) as (connection, ring, together):  # few entries: more processes start too slowly
        keys.require_current(ring)
        since = checkpoints.read(connection, ring, line).since
        with meanwhile(connection, _numbers) as numbers:  # PostgreSQL counts while this process computes
            yield from faults_of_sign_ins(connection, ring, since)
            parts = []
            for kind in _kinds(connection, since):
                if not _is_word(kind):
                    yield f"There is history of a kind that is none: {kind!a}."
                elif kind != SIGN_INS[0]:
                    parts += _ranges_since(connection, kind, since)
            yield from together.faults(ring, parts)
            told, there = numbers()
        if told != there:  # an entry of any age was removed or put in
            yield f"The heads tell of {told} entries, and {there} are there. A whole verification names the records."


def _ranges_since(connection: Connection, kind: str, since: Since) -> list[Range]:
    """Return ranges that hold the chains of a kind that have entries since then, and all records that are newer."""
    new = AuditEntry.kind == kind, AuditEntry.id > since.entry
    chains = select(AuditEntry.record_id, func.min(AuditEntry.seq)).where(*new).group_by(AuditEntry.record_id)
    seqs = [(record_id, seq) for record_id, seq in connection.execute(chains) if isinstance(record_id, int)]
    first = min((record_id for record_id, seq in seqs if seq == 1), default=None)
    if first is None:
        newest = connection.scalar(select(func.max(AuditHead.record_id)).where(AuditHead.kind == kind))
        first = newest + 1 if isinstance(newest, int) else None
    ids = sorted(record_id for record_id, _ in seqs if first is not None and record_id < first)
    return [Range(kind, first), *(Range(kind, ids=tuple(ids[n : n + BATCH])) for n in range(0, len(ids), BATCH))]


def _numbers(connection: Connection) -> tuple[int, int]:
    """Return how many entries the heads tell of, and how many there are."""
    told = connection.scalar(select(func.sum(AuditHead.seq)))
    there = connection.scalar(select(func.count()).select_from(AuditEntry))
    return told or 0, there or 0
