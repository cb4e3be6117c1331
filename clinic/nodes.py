"""Says in the log when several nodes keep images on disks of their own: readers would miss what another node has.

A node is a folder of images: its id is a file in it. Nodes that share the folder are one node here, and miss nothing.
"""

import logging
import os
import secrets
import socket
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from flask import Flask, current_app, request
from sqlalchemy import delete, select, text
from sqlalchemy.exc import SQLAlchemyError

from clinic.stores import stores
from models import Node
from server.database import db, upsert
from server.times import now

log = logging.getLogger("hosi.media")

REFRESH = 600  # seconds until a process writes again that its node lives
ALIVE = timedelta(hours=1)  # a node that was seen within it lives
LONGEST_ID = 64  # characters of the file that are read


def init_app(app: Flask) -> None:
    """Write the node of a process at its first request that uses the database, and again every `REFRESH` seconds.

    Does so only where images are local and `PUBLIC_URL` says that this is no developer's machine.
    """
    kept = app.extensions["image_stores"]
    if app.config["PUBLIC_URL"] and kept.chosen is kept.local:
        app.before_request(_refresh)


def _refresh() -> None:
    due = current_app.extensions.get("node_due", 0.0)
    if time.monotonic() < due:
        return
    contract = getattr(current_app.view_functions.get(request.endpoint or ""), "contract", None)
    if not (contract and contract.uses_database):
        return
    current_app.extensions["node_due"] = time.monotonic() + REFRESH
    try:
        others = _note(_node_id(stores().local.folder))
    except (SQLAlchemyError, OSError) as error:  # the request itself will tell
        log.debug("the node was not noted: %s", error)
        return
    if others and not due:
        log.warning(
            "images are kept on the local disk of each node, and %s keeps images of its own: readers miss those of "
            "the other node. Keep images on S3 or Cloudinary, or share instance/images/ (docs/deployment.md)",
            ", ".join(others),
        )


def _node_id(folder: Path) -> str:
    """Return the id of the folder of images. The first call writes it; of two at once, both return the same."""
    path = folder / "node"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"node.{secrets.token_hex(4)}"
        draft.write_text(secrets.token_hex(16))
        with suppress(FileExistsError):
            os.link(draft, path)  # never replaces a file: two processes that start together use the same id
        draft.unlink()
    return path.read_text()[:LONGEST_ID]


def _note(node_id: str) -> list[str]:
    """Write that this node lives, forget dead nodes, and return the host names of the other nodes that live."""
    seen = {"host": socket.gethostname()[:255], "seen_at": now()}
    statement = upsert(Node).values(id=node_id, **seen)
    with db.engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # a read must not wait for a synchronous standby that is away
            connection.execute(text("SET LOCAL synchronous_commit = off"))
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=seen))
        connection.execute(delete(Node).where(Node.seen_at < now() - ALIVE))
        return list(connection.scalars(select(Node.host).where(Node.id != node_id).order_by(Node.host)))
