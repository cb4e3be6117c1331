"""Registers every listener of the session, in one place."""

from sqlalchemy import event
from sqlalchemy.orm import Session

from clinic import search


def register() -> None:
    """Register the listeners, once in a process however many applications it makes."""
    if not event.contains(Session, "after_flush", search.index_words):
        event.listen(Session, "after_flush", search.index_words)
