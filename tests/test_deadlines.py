"""A store that never ends its answer: each call ends by one deadline for the whole of it."""

import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType

import pytest
from client import Client, assert_refused
from factories import MakeApp, files, make_patient
from flask import Flask
from PIL import Image
from sql import snapshot

from clinic.stores import cloudinary_store, s3

DEADLINE = 1.0  # seconds


def trickle(connection: socket.socket, answer: bytes) -> None:
    """Send the first bytes at once, and then a byte at a time, each long before a timeout for one read."""
    connection.sendall(answer)
    while True:
        connection.sendall(b"a")
        time.sleep(0.1)


def trickle_headers(connection: socket.socket) -> None:
    connection.recv(65536)
    trickle(connection, b"HTTP/1.1 200 OK\r\nX-")


def trickle_body(connection: socket.socket) -> None:
    connection.recv(65536)
    trickle(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")


def trickle_chunks(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\na\r\n")
        time.sleep(0.1)


def sip(connection: socket.socket) -> None:
    """Read the request a few bytes at a time."""
    while connection.recv(64):
        time.sleep(0.1)


def trickle_handshake(connection: socket.socket) -> None:
    connection.recv(65536)
    trickle(connection, b"\x16\x03\x03\x40\x00\x02")  # a server's hello of 16 KB


def noise() -> bytes:
    """Return a picture of 5 MB, more than the buffers of a connection hold."""
    file = io.BytesIO()
    Image.frombytes("RGB", (1_300, 1_300), os.urandom(1_300 * 1_300 * 3)).save(file, "PNG")
    return file.getvalue()


Manner = Callable[[socket.socket], None]


@pytest.fixture
def slow_store() -> Iterator[Callable[[Manner, str], str]]:
    """Serves a store that answers in this manner; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    manners: list[Manner] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client has gone
            manners[0](connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()

    def start(manner: Manner, scheme: str) -> str:
        manners.append(manner)
        return f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    listener.close()


ACCOUNTS: dict[ModuleType, tuple[dict[str, str], str]] = {  # the settings of an account, and the name of its address
    cloudinary_store: (
        {"CLOUDINARY_CLOUD_NAME": "clinic", "CLOUDINARY_API_KEY": "1", "CLOUDINARY_API_SECRET": "secret"},
        "CLOUDINARY_UPLOAD_PREFIX",
    ),
    s3: ({"S3_BUCKET": "images", "S3_ACCESS_KEY": "1", "S3_SECRET_KEY": "secret"}, "S3_ENDPOINT"),
}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # the database makes no difference
@pytest.mark.parametrize("store", ACCOUNTS, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize(
    ("manner", "scheme"),
    [
        (trickle_headers, "http"),
        (trickle_body, "http"),
        (trickle_chunks, "http"),
        (sip, "http"),
        (trickle_handshake, "https"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_upload_to_a_store_that_trickles_ends_by_its_deadline(
    app: Flask,
    doctor: Client,
    make_app: MakeApp,
    slow_store: Callable[[Manner, str], str],
    monkeypatch: pytest.MonkeyPatch,
    manner: Manner,
    scheme: str,
    store: ModuleType,
) -> None:
    for name in ("UPLOAD_TIMEOUT", "DESTROY_TIMEOUT"):
        monkeypatch.setattr(store, name, DEADLINE)
    # Longer, so that the deadline ends a handshake. If both come at once, the deadline cuts the next connection, and
    # Python leaves a socket open that was cut just before its handshake.
    monkeypatch.setattr(store, "CONNECT_TIMEOUT", 3 * DEADLINE)
    account, address = ACCOUNTS[store]
    here = {address: slow_store(manner, scheme), "INSTANCE_PATH": app.config["INSTANCE_PATH"]}
    sender = Client(make_app(**account, **here), doctor.token, doctor.user)
    form = {"patient_id": str(make_patient(doctor)["id"]), "images": files(noise())}
    before, began = snapshot(app), time.monotonic()
    assert_refused(sender.post("/reports", data=form), 502)
    assert time.monotonic() - began < 4 * DEADLINE + 2  # the upload, and the taking back of it
    after = snapshot(app)
    assert {**after, "uploads": []} == before
    assert len(after["uploads"]) == 1  # the taking back failed, too: the row waits for the sweep
