"""Spells the macs of the record history: of an entry, of its values, and of a head.

History is verified for as long as there are records, so a spelling never changes: a mac is the hex HMAC-SHA256 of a
JSON array under `AUDIT_KEY`.
"""

import hmac
import json
from collections.abc import Mapping
from typing import Any

from flask import current_app

Chain = tuple[str, int]  # kind and record_id

GENESIS = ""  # stands for the mac before a chain's first entry
COVERED = ("id", "kind", "record_id", "seq", "at", "actor_id", "action", "version", "request_id", "digest")
TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"  # of an entry's `at`, in UTC

_json = json.JSONEncoder(default=repr).encode  # `json.dumps` would make an encoder for each call


def audit_key() -> bytes:
    return str(current_app.config["AUDIT_KEY"]).encode()


def mac(key: bytes, *parts: object) -> str:
    return hmac.digest(key, _json(parts).encode(), "sha256").hex()


def of_entry(key: bytes, before: str, entry: Mapping[str, Any]) -> str:
    """Returns the mac of `entry`, which follows the entry with the mac `before`; `at` is a text in `TIME_FORMAT`."""
    return mac(key, before, *(entry[name] for name in COVERED))


def of_head(key: bytes, chain: Chain, seq: int, entry_mac: str) -> str:
    return mac(key, "head", *chain, seq, entry_mac)


def of_changes(key: bytes, chain: Chain, changes: str) -> str:
    """Returns the digest that an entry keeps of its changes, so that a purge can blank them."""
    return mac(key, "changes", *chain, changes)


def same(stored: Any, right: str) -> bool:
    """Compares a mac from the database, where SQLite may hold any value, with the right one."""
    return isinstance(stored, str) and hmac.compare_digest(stored.encode(errors="surrogatepass"), right.encode())
