"""Imitates Cloudinary for tests and benches: its Upload API and signed delivery, over HTTP on 127.0.0.1.

The real SDK reaches it through `upload_prefix`. Its rules are from cloudinary.com/documentation, the page
named with each. It acts on `public_id`, `type` and `overwrite`; the rest it checks the signature of. By hand:

    python testing/cloudinary_double.py --port 8765 --delay 0.2
"""

import argparse
import contextlib
import hashlib
import json
import math
import re
import secrets
import socket
import sys
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any, Literal, Self, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from PIL import Image, ImageOps
from werkzeug.formparser import parse_form_data

How = Literal["500", "drop", "drop_after_store", "hang"] | bytes  # bytes: this answer, with the image stored
NEVER_SIGNED = {"api_key", "cloud_name", "file", "resource_type", "signature"}
API_PATH = re.compile(r"/v1_1/([^/]+)/image/(upload|destroy)")
LIST_PATH = re.compile(r"/v1_1/[^/]+/resources/image/\w+")
DELIVERY_PATH = re.compile(r"/([^/]+)/image/(\w+)/(?:s--([\w-]+)--/)?(?:(\w+_\w+(?:,\w+_\w+)+)/)?(?:v\d+/)?(.+)\.(\w+)")
LIMIT = re.compile(r"c_limit,h_(\d+),w_(\d+)")  # the only transformation that the double does


@dataclass(frozen=True)
class Stored:
    """An image as Cloudinary keeps it."""

    content: bytes
    type: str
    format: str
    width: int
    height: int
    version: int = field(default_factory=lambda: int(time.time()))
    asset_id: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass
class Received:
    """An API call, recorded when its body is in. Times are `time.monotonic()`; `size` is bytes of image."""

    action: str
    public_id: str
    arrived_at: float
    params: dict[str, str]
    size: int
    answered_at: float = math.inf


class Refused(Exception):
    """An error answer: its HTTP status and Cloudinary's message, worded as users report it."""


class CloudinaryDouble:
    """Serves from the moment it is made until `close()`."""

    cloud_name = "clinic"
    api_key = "123456789012345"
    api_secret = "tests-only-abcdefghijklmnopq"
    page_size: int  # of the Admin API

    def __init__(self, port: int = 0, delay: float = 0.0) -> None:
        self._lock, self._released = threading.Lock(), threading.Event()
        self.reset()
        self.delay = delay
        self._server = DoubleServer(("127.0.0.1", port), type("Handler", (_Handler,), {"double": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self) -> None:
        """Forget every image, call, planned failure and the delay; drop the calls that wait."""
        with self._lock:
            self.delay, self.page_size = 0.0, 500
            self.stored: dict[str, Stored] = {}
            self.requests: list[Received] = []
            self._failures: dict[tuple[str, int], How] = {}
            self._released.set()
            self._released = threading.Event()

    def close(self) -> None:
        """Stop serving, and close keep-alive connections."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._released.set()
        self._server.hang_up()

    def fail(self, nth: int, how: How, action: str = "upload") -> None:
        """Let the `nth` call of `action` from now fail. "500", "drop" and "hang" change nothing."""
        with self._lock:
            self._failures[action, self._count(action) + nth] = how

    def _count(self, action: str) -> int:
        return sum(call.action == action for call in self.requests)

    @property
    def in_flight_peak(self) -> int:
        """The highest number of concurrent uploads. An upload lasts from its arrival until just before its answer."""
        return max((len(together) for together in self._uploads_together()), default=0)

    @property
    def in_flight_bytes_peak(self) -> int:
        """The highest total of image bytes in concurrent uploads."""
        return max((sum(call.size for call in together) for together in self._uploads_together()), default=0)

    def _uploads_together(self) -> list[list[Received]]:
        """Return, for the arrival of each upload, the uploads under way: a peak is always at an arrival."""
        with self._lock:
            uploads = [call for call in self.requests if call.action == "upload"]
        return [[u for u in uploads if u.arrived_at <= at.arrived_at < u.answered_at] for at in uploads]

    def answer(self, cloud: str, call: Received, content: bytes | None) -> dict[str, Any] | bytes | None:
        """Return Cloudinary's answer; None to close the socket instead. Raises Refused."""
        with self._lock:
            self.requests.append(call)
            how = self._failures.get((call.action, self._count(call.action)))
            released = self._released
            delay = self.delay if call.action == "upload" else 0.0
        if released.wait(None if how == "hang" else delay) or how == "drop":
            return None
        if how == "500":
            raise Refused(500, "Internal Server Error")
        self._authenticate(cloud, call.params)
        done = self._upload(call, content) if call.action == "upload" else self._destroy(call)
        if how == "drop_after_store":
            return None
        return how if isinstance(how, bytes) else done

    def _authenticate(self, cloud: str, params: dict[str, str]) -> None:
        """The rules of `authentication_signatures`. A stale request answers 400, as users report it."""
        if cloud != self.cloud_name:
            raise Refused(401, f"Invalid cloud_name {cloud}")
        if params.get("api_key") != self.api_key:
            raise Refused(401, f"Unknown API key {params.get('api_key', '')}")
        # Signature version 1 joins values unchanged. Version 2 escapes `&`: a value must not look like two parameters.
        pairs = sorted(f"{name}={value}" for name, value in params.items() if name not in NEVER_SIGNED)
        to_sign = ["&".join(pair.replace("&", "%26") for pair in pairs), "&".join(pairs)]
        given = params.get("signature", "")
        algorithm = hashlib.sha256 if len(given) == 64 else hashlib.sha1
        if given not in [algorithm((text + self.api_secret).encode()).hexdigest() for text in to_sign]:
            raise Refused(401, f"Invalid Signature {given}. String to sign - '{to_sign[0]}'.")
        signed_at = int(params.get("timestamp", "0"))
        if signed_at < time.time() - 3600:
            when = datetime.fromtimestamp(signed_at, UTC).strftime("%Y-%m-%d %H:%M:%S %z")
            raise Refused(400, f"Stale request - reported time is {when} which is more than 1 hour ago")

    def _upload(self, call: Received, content: bytes | None) -> dict[str, Any]:
        """`image_upload_api_reference#upload`: the type is "upload", which is public, unless one is given."""
        if content is None:
            raise Refused(400, "Missing required parameter - file")
        try:
            with Image.open(BytesIO(content)) as image:
                form = {"JPEG": "jpg"}.get(str(image.format), str(image.format).lower())
                new = Stored(content, call.params.get("type", "upload"), form, *image.size)
                image.verify()
        except (OSError, SyntaxError) as error:  # what Pillow raises for "no image", and for a broken PNG
            raise Refused(400, "Invalid image file") from error
        with self._lock:
            old = self.stored.get(call.public_id)
            if old and old.type == new.type and call.params.get("overwrite") in ("0", "false"):
                return self._describe(call.public_id, old) | {"existing": True}
            self.stored[call.public_id] = new
        return self._describe(call.public_id, new)

    def _destroy(self, call: Received) -> dict[str, Any]:
        """`image_upload_api_reference#destroy`: the same public id under another type is another image."""
        with self._lock:
            image = self.stored.get(call.public_id)
            if image is None or image.type != call.params.get("type", "upload"):
                return {"result": "not found"}
            del self.stored[call.public_id]
        return {"result": "ok"}

    def _describe(self, public_id: str, image: Stored) -> dict[str, Any]:
        """The answer to an upload, signed as in `response_signatures`. `secure_url` is HTTP here."""
        source = f"{quote(public_id, '/:')}.{image.format}"
        signature = f"s--{self._delivery_signatures(source)[0]}--/" if image.type == "authenticated" else ""
        url = f"{self.url}/{self.cloud_name}/image/{image.type}/{signature}v{image.version}/{source}"
        to_sign = f"public_id={public_id}&version={image.version}{self.api_secret}"
        return {
            "asset_id": image.asset_id,
            "public_id": public_id,
            "version": image.version,
            "signature": hashlib.sha1(to_sign.encode()).hexdigest(),
            "width": image.width,
            "height": image.height,
            "format": image.format,
            "resource_type": "image",
            "created_at": datetime.fromtimestamp(image.version, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "bytes": len(image.content),
            "type": image.type,
            "etag": hashlib.md5(image.content).hexdigest(),
            "url": url,
            "secure_url": url,
        }

    def _delivery_signatures(self, source: str) -> list[str]:
        """`delivery_url_signatures`: over the transformation and what follows the version; the first is the SDK's."""
        digests = [algorithm((source + self.api_secret).encode()) for algorithm in (hashlib.sha1, hashlib.sha256)]
        sha1, sha256 = (urlsafe_b64encode(digest.digest()).decode() for digest in digests)
        return [sha1[:8], sha256[:8], sha256[:32]]

    def list_page(self, path: str, authorization: str) -> tuple[int, dict[str, Any]]:
        """Answer the Admin API: the stored images of a type, a page at a time."""
        account = b64encode(f"{self.api_key}:{self.api_secret}".encode()).decode()
        if authorization != f"Basic {account}":
            return 401, {"error": {"message": "unknown api_key"}}
        asked = dict(parse_qsl(urlsplit(path).query))
        of_type = urlsplit(path).path.rpartition("/")[2]
        first, size = int(asked.get("next_cursor", 0)), min(int(asked["max_results"]), self.page_size)
        found = sorted(public_id for public_id, image in self.stored.items() if image.type == of_type)
        answer: dict[str, Any] = {"resources": [{"public_id": one} for one in found[first : first + size]]}
        if first + size < len(found):
            answer["next_cursor"] = str(first + size)
        return 200, answer

    def deliver(self, path: str) -> Stored:
        """The image of a delivery URL, transformed. Raises Refused: 401 if the signature is wrong or missing, else 404.

        The signature of an authenticated image covers the transformation: nobody can ask for another one.
        """
        parts = DELIVERY_PATH.fullmatch(path)
        if parts is None or parts[1] != self.cloud_name:
            raise Refused(404, "Resource not found")
        kind, signature, transformation, source, extension = parts.groups()[1:]
        public = kind == "upload" and signature is None
        to_sign = "/".join(filter(None, (transformation, f"{source}.{extension}")))
        if not public and signature not in self._delivery_signatures(to_sign):
            raise Refused(401, "Invalid or missing signature")
        image = self.stored.get(unquote(source))
        if image is None or (image.type, image.format) != (kind, extension):
            raise Refused(404, f"Resource not found - {unquote(source)}")
        return _transformed(image, transformation) if transformation else image


def _transformed(image: Stored, transformation: str) -> Stored:
    """`transformation_reference#c_limit`: no larger than asked, and upright. Raises Refused for any other."""
    asked = LIMIT.fullmatch(transformation)
    if asked is None:
        raise Refused(400, f"Invalid transformation {transformation}")
    with Image.open(BytesIO(image.content)) as opened:
        limited = ImageOps.exif_transpose(opened)
        limited.thumbnail((int(asked[2]), int(asked[1])))
        content = BytesIO()
        limited.save(content, opened.format)
    return Stored(content.getvalue(), image.type, image.format, *limited.size)


class DoubleServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # beyond the default of 5, a burst of connections waits a second for TCP's retry

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self._open.discard(request)

    def hang_up(self) -> None:
        """End every connection; its thread sees the end and closes it."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # the client was first
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # that a client leaves is no news; a bug here is
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    wbufsize = -1  # headers and body leave together: apart, Nagle's algorithm would hold the body for 40 ms
    double: CloudinaryDouble

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        arrived_at = time.monotonic()
        body = self.rfile.read(length := int(self.headers.get("Content-Length", "0")))
        path = API_PATH.fullmatch(self.path)
        if path is None or len(body) < length:  # a client that left half-way made no call
            self._send(404, {"error": {"message": f"The double serves no {self.path}"}})
            return
        environ = {"CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(length)}
        _, form, files = parse_form_data(environ | {"wsgi.input": BytesIO(body)}, lambda *_, **__: BytesIO())
        # A list arrives as `name[]` time and again, and is signed as one value with commas.
        params = {name.removesuffix("[]"): ",".join(values) for name, values in form.lists()}
        content = cast(BytesIO, files["file"].stream).getvalue() if "file" in files else None
        public_id = params.get("public_id") or secrets.token_hex(10)
        call = Received(path[2], public_id, arrived_at, params, len(content or b""))
        status, answer = 200, cast(dict[str, Any] | bytes | None, None)
        try:
            answer = self.double.answer(path[1], call, content)
        except Refused as refused:
            status, answer = refused.args[0], {"error": {"message": refused.args[1]}}
        call.answered_at = time.monotonic()  # before the answer: upon it, the client may send the next
        if answer is None:
            self.close_connection = True
        else:
            self._send(status, answer)

    def do_GET(self) -> None:
        if LIST_PATH.fullmatch(urlsplit(self.path).path):
            self._send(*self.double.list_page(self.path, self.headers.get("Authorization", "")))
            return
        try:
            image = self.double.deliver(self.path)
        except Refused as refused:
            self._send(refused.args[0], {"error": {"message": refused.args[1]}})
        else:
            self._send(200, image.content, f"image/{'jpeg' if image.format == 'jpg' else image.format}")

    def _send(self, status: int, body: bytes | dict[str, Any], kind: str = "application/json") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Serve a double of Cloudinary until killed.")
    options.add_argument("--port", type=int, default=8765)
    options.add_argument("--delay", type=float, default=0.0, help="seconds each upload takes")
    double = CloudinaryDouble(**vars(options.parse_args()))
    account = f"{double.api_key}:{double.api_secret}@{double.cloud_name}"
    sys.stdout.write(f"CLOUDINARY_URL=cloudinary://{account}?upload_prefix={double.url}\n")
    sys.stdout.write(f"upload_prefix={double.url}\n")
    sys.stdout.flush()
    threading.Event().wait()
