"""Registers the listeners of the SQLAlchemy session. No other module listens to it."""

from sqlalchemy import event
from sqlalchemy.orm import Session

from clinic import search
from clinic.history import chain

AFTER_FLUSH = (chain.write_flushed, search.index_words)  # in this order


def register() -> None:
    """Register the listeners for all sessions of the process. Further calls change nothing."""
    for listener in AFTER_FLUSH:
        if not event.contains(Session, "after_flush", listener):
            event.listen(Session, "after_flush", listener)
