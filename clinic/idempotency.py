"""Idempotency-Key: a POST that is sent twice makes one record.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from typing import Any

from flask import Flask, g, has_request_context, request
from pydantic import BaseModel
from sqlalchemy import delete, event, select, update
from sqlalchemy.orm import Session, UOWTransaction
from werkzeug.datastructures import FileStorage

from models import IdempotencyKey, Record, db, now, upsert
from server import errors

KEPT = timedelta(hours=24)
LEASE = timedelta(minutes=10)  # for uploads: a crash does not bar the retry for a day
View = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make the record of a key."""

    kind: type[Record]
    user_id: int
    key: str
    claimed_at: datetime

    @property
    def row(self) -> tuple[Any, ...]:
        """Where the key's row is, as long as nobody else has taken it over."""
        return (
            IdempotencyKey.user_id == self.user_id,
            IdempotencyKey.key == self.key,
            IdempotencyKey.claimed_at == self.claimed_at,
            IdempotencyKey.record_id.is_(None),
        )


def idempotent(kind: type[Record], show: Callable[[int], Any], lease: bool = False) -> Callable[[View], View]:
    """Has the view, which makes one `kind`, make it once for a key; a repetition is answered by `show(id)`.

    The key commits with the record. With `lease`, for a view that sends uploads meanwhile, it is committed before.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def once(**given: Any) -> Any:
            key = request.headers.get("Idempotency-Key")
            if key is None:
                return view(**given)
            if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
                raise errors.BadRequest("An Idempotency-Key has 1 to 255 visible ASCII characters, a UUID say.")
            claim = Claim(kind, g.caller.id, key, now())
            made = _claim(claim, _fingerprint(view.__name__, given))
            if made is not None:
                try:
                    return show(made)
                except errors.NotFound:
                    raise errors.Conflict(
                        f"{kind.__name__} {made}, made under this key, is archived or erased."
                    ) from None
            if lease:
                db.session.commit()
            g.idempotency_claim = claim
            try:
                return view(**given)
            except BaseException:
                if lease:  # only successes are kept
                    db.session.rollback()
                    db.session.execute(delete(IdempotencyKey).where(*claim.row))
                    db.session.commit()
                raise
            finally:
                g.pop("idempotency_claim")

        return once

    return decorate


def _fingerprint(view: str, given: dict[str, Any]) -> str:
    """Of the fields' values and each file's content: a form that is sent again has another boundary."""

    def plain(part: BaseModel | Sequence[FileStorage]) -> Any:
        if isinstance(part, BaseModel):
            return part.model_dump(mode="json")
        return [_sha256(file) for file in part]

    content = json.dumps([view, {name: plain(part) for name, part in given.items()}], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _sha256(file: FileStorage) -> str:
    file.stream.seek(0)
    digest = hashlib.file_digest(file.stream, "sha256").hexdigest()  # type: ignore[arg-type]
    file.stream.seek(0, os.SEEK_SET)
    return digest


def _claim(claim: Claim, fingerprint: str) -> int | None:
    """None when the record is the claimer's to make, else the id of the one that was made.

    Raises `Invalid` when the key was used for other content, `Conflict` while the first request is running.
    """
    fresh = {"fingerprint": fingerprint, "claimed_at": claim.claimed_at, "record_id": None}
    mine = IdempotencyKey.user_id == claim.user_id, IdempotencyKey.key == claim.key
    row = None
    while row is None:  # between the two statements, a first request that failed may take its key back
        inserted = db.session.execute(
            upsert(IdempotencyKey)
            .values(user_id=claim.user_id, key=claim.key, **fresh)
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.key)
        ).first()
        if inserted:
            return None
        row = db.session.execute(select(IdempotencyKey.__table__).where(*mine).with_for_update()).one_or_none()
    age = claim.claimed_at - row.claimed_at
    if age > KEPT or (row.record_id is None and age > LEASE):
        db.session.execute(update(IdempotencyKey).where(*mine).values(**fresh))
        return None
    if row.fingerprint != fingerprint:
        raise errors.Invalid({"Idempotency-Key": ["This key was used for a request with other content."]})
    if row.record_id is None:
        raise errors.Conflict("The first request with this key is still running.", headers={"Retry-After": "2"})
    return int(row.record_id)


def _after_flush(session: Session, _: UOWTransaction) -> None:
    """Ties the key to the record, in the transaction that makes it."""
    claim: Claim | None = g.get("idempotency_claim") if has_request_context() else None
    for record in session.new if claim else ():
        if claim and type(record) is claim.kind:
            statement = update(IdempotencyKey).where(*claim.row).values(record_id=record.id)
            if session.connection().execute(statement).rowcount != 1:
                raise errors.Conflict("This request took too long, and another one with its key has taken over.")


def sweep() -> int:
    """Forgets keys that have lost their effect. Returns how many."""
    return int(db.session.execute(delete(IdempotencyKey).where(IdempotencyKey.claimed_at < now() - KEPT)).rowcount)  # type: ignore[attr-defined]


def init_app(app: Flask) -> None:
    if not event.contains(Session, "after_flush", _after_flush):
        event.listen(Session, "after_flush", _after_flush)
