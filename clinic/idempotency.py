"""Idempotency-Key: a POST that is sent again with its key makes no second record.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from typing import Any

from flask import g, request
from pydantic import BaseModel
from sqlalchemy import delete, select, update
from werkzeug.datastructures import FileStorage

from models import IdempotencyKey, Record
from server import errors
from server.database import affected_rows, db, upsert
from server.times import now

log = logging.getLogger("hosi")

KEPT = timedelta(hours=24)
LEASE = timedelta(minutes=10)  # then a retry may take over a key whose request made nothing: it has crashed
View = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of a request to make the record of a key."""

    user_id: int
    key: str
    claimed_at: datetime

    @property
    def row(self) -> tuple[Any, ...]:
        """The conditions for the row of this claim. They select nothing after another request takes over the key."""
        return (
            IdempotencyKey.user_id == self.user_id,
            IdempotencyKey.key == self.key,
            IdempotencyKey.claimed_at == self.claimed_at,
            IdempotencyKey.record_id.is_(None),
        )


def idempotent(kind: type[Record], show: Callable[[int], Any], lease: bool = False) -> Callable[[View], View]:
    """Decorate a view that makes a record of `kind`: a repeated request with the same key answers `show(id)` instead.

    The view calls `made(record)`, which ties the key to the record in the same transaction. A view that uploads needs
    `lease=True`: its key is committed before the view runs, and deleted if the view fails. A dry run makes nothing and
    claims no key.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def once(**arguments: Any) -> Any:
            key = request.headers.get("Idempotency-Key")
            if key is None or getattr(arguments.get("query"), "dry_run", False):
                return view(**arguments)
            if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
                raise errors.BadRequest("An Idempotency-Key has 1 to 255 visible ASCII characters, a UUID say.")
            claim = Claim(g.caller.id, key, now())
            made_before = _claim(claim, _fingerprint(view.__name__, arguments))
            if made_before is not None:
                return _repeat(kind, made_before, show)
            return _run(claim, view, arguments, lease)

        once.is_idempotent = True  # type: ignore[attr-defined]
        return once

    return decorate


def _repeat(kind: type[Record], record_id: int, show: Callable[[int], Any]) -> Any:
    try:
        return show(record_id)
    except errors.NotFound:
        text = f"{kind.__name__} {record_id}, made under this key, is archived or erased."
        raise errors.Conflict(text, code=errors.Code.ARCHIVED) from None


def _run(claim: Claim, view: View, arguments: dict[str, Any], lease: bool) -> Any:
    """Run the view under the claim. A lease is committed before the view, and deleted if the view fails."""
    if lease:
        db.session.commit()
    g.idempotency_claim = claim
    try:
        answer = view(**arguments)
        if "idempotency_made" not in g:
            raise RuntimeError(f"{view.__name__} is idempotent and must say by made() what it made")
        return answer
    except BaseException:
        if lease:
            _delete(claim)
        raise
    finally:
        g.pop("idempotency_claim")
        g.pop("idempotency_made", None)


def _delete(claim: Claim) -> None:
    """Give the key of a failed request back, and commit. If this fails the lease ends by itself."""
    db.session.rollback()
    try:
        db.session.execute(delete(IdempotencyKey).where(*claim.row))
        db.session.commit()
    except Exception:
        db.session.rollback()
        log.exception("an idempotency key is kept until its lease ends")


def made(record: Record) -> None:
    """Tie the request's key to the record that the view made, in the same transaction. Without a key, do nothing.

    Raises `Conflict` if another request has taken over the key.
    """
    claim: Claim | None = g.get("idempotency_claim")
    if claim is None:
        return
    if affected_rows(update(IdempotencyKey).where(*claim.row).values(record_id=record.id)) != 1:
        raise errors.Conflict("This request took too long, and another one with its key has taken over.")
    g.idempotency_made = record.id


def _fingerprint(view: str, arguments: dict[str, Any]) -> str:
    """Return a digest of the fields and the files' content. The body itself will not do: its boundary changes."""

    def to_json(part: BaseModel | Sequence[FileStorage] | int) -> Any:
        if isinstance(part, BaseModel):
            return part.model_dump(mode="json")
        if isinstance(part, int):  # an id of the path
            return part
        return [_sha256(file) for file in part]

    content = json.dumps([view, {name: to_json(part) for name, part in arguments.items()}], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _sha256(file: FileStorage) -> str:
    file.stream.seek(0)
    digest = hashlib.file_digest(file.stream, "sha256").hexdigest()  # type: ignore[arg-type]
    file.stream.seek(0, os.SEEK_SET)
    return digest


def _claim(claim: Claim, fingerprint: str) -> int | None:
    """Take the key and return None; or, if a request with it has made a record, return the id of that record.

    Raises `Invalid` if the key was used for other content, and `Conflict` while the first request is running.
    """
    fresh = {"fingerprint": fingerprint, "claimed_at": claim.claimed_at, "record_id": None}
    same_key = IdempotencyKey.user_id == claim.user_id, IdempotencyKey.key == claim.key
    row = None
    while row is None:  # a first request that fails deletes its key between these two statements
        inserted = db.session.execute(
            upsert(IdempotencyKey)
            .values(user_id=claim.user_id, key=claim.key, **fresh)
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.key)
        ).first()
        if inserted:
            return None
        row = db.session.execute(select(IdempotencyKey.__table__).where(*same_key).with_for_update()).one_or_none()
    age = claim.claimed_at - row.claimed_at
    if age > KEPT or (row.record_id is None and age > LEASE):
        db.session.execute(update(IdempotencyKey).where(*same_key).values(**fresh))
        return None
    if row.fingerprint != fingerprint:
        raise errors.Invalid({"Idempotency-Key": ["This key was used for a request with other content."]})
    if row.record_id is None:
        raise errors.busy("The first request with this key is still running. Please try again.")
    return int(row.record_id)


def sweep() -> int:
    """Delete the keys older than `KEPT`. Return how many."""
    return affected_rows(delete(IdempotencyKey).where(IdempotencyKey.claimed_at < now() - KEPT))
