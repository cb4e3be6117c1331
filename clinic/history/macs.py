"""Spells the macs of the record history: of an entry, of its values, and of a head.

History is verified for as long as there are records, so a spelling never changes; a new spelling gets a number of its
own. A mac is the hex HMAC-SHA256 of a JSON array under a key of the history.
"""

import hmac
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Text, func, literal, type_coerce

from models import AuditEntry

Chain = tuple[str, int]  # kind and record_id

GENESIS = ""  # stands for the mac before a chain's first entry
TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"  # of an entry's `at`, in UTC
COVERED = ("id", "kind", "record_id", "seq", "at", "actor_id", "action", "version", "request_id", "digest")
SPELLINGS = {1: COVERED, 2: (*COVERED, "spelling", "key_number")}  # the columns that an entry's mac covers
SPELLING = 2  # of new entries

_json = json.JSONEncoder(default=repr).encode  # `json.dumps` would make an encoder for each call


def mac(key: bytes, *parts: object) -> str:
    return hmac.digest(key, _json(parts).encode(), "sha256").hex()


def of_entry(key: bytes, before: str, entry: Mapping[str, Any]) -> str:
    """Returns the mac of `entry`, which follows the entry with the mac `before`; `at` is a text in `TIME_FORMAT`.

    Raises `KeyError` for an unknown spelling.
    """
    return mac(key, before, *(entry[name] for name in SPELLINGS[entry["spelling"]]))


def of_head(key: bytes, chain: Chain, seq: int, entry_mac: str) -> str:
    return mac(key, "head", *chain, seq, entry_mac)


def of_changes(key: bytes, chain: Chain, changes: str) -> str:
    """Returns the digest that an entry keeps of its changes, so that a purge can blank them."""
    return mac(key, "changes", *chain, changes)


def of_key(key: bytes) -> str:
    """Returns the check value of a key, by which the database knows it."""
    return mac(key, "key")


def of_seal(key: bytes, number: int, head: str) -> str:
    """Returns the seal by key `number` over all entries of the earlier keys, whose head of all is `head`."""
    return mac(key, "seal", number, head)


def same(stored: Any, right: str) -> bool:
    """Compares a mac from the database, where SQLite may hold any value, with the right one."""
    return isinstance(stored, str) and hmac.compare_digest(stored.encode(errors="surrogatepass"), right.encode())


def stored_time(dialect: str) -> ColumnElement[str]:
    """Returns an entry's time as the text that its mac covers, also where SQLite holds no time."""
    if dialect == "sqlite":
        return type_coerce(AuditEntry.at, Text)
    utc = AuditEntry.at.op("AT TIME ZONE")(literal("UTC"))
    return func.replace(func.to_char(utc, "YYYY-MM-DD HH24:MI:SS.US BC"), " AD", "")
