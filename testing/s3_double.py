"""Imitates an S3 server for tests and benches: the calls that a store of images makes, over HTTP on 127.0.0.1.

It takes only requests that are signed by AWS Signature Version 4, of this moment and of this very body. The rules are
from docs.aws.amazon.com/AmazonS3/latest/API/, the page named with each. By hand:

    python -m testing.s3_double --port 9000 --delay 0.2
"""

import argparse
import hashlib
import hmac
import re
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from testing.cloudinary_double import DoubleServer, Refused

How = (
    Literal["500", "drop", "drop_after", "hang", "hang_after", "lose", "swap", "trickle", "cut_short", "garble"] | bytes
)  # bytes: this answer, with status 200
AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<scope>(?P<day>\d{8})/(?P<region>[^/]+)/s3/aws4_request), ?"
    r"SignedHeaders=(?P<headers>[^,]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)
SKEW = timedelta(minutes=15)


def signature(
    secret: str, scope: str, moment: str, method: str, path: str, query: str, headers: Mapping[str, str], body_hash: str
) -> str:
    """The signature of a request. `headers` are the signed ones, in small letters; `path` is percent-encoded.

    `sig-v4-header-based-auth`: the canonical request, the string to sign, the key.
    """
    pairs = sorted(parse_qsl(query, keep_blank_values=True))
    canonical = "\n".join(
        [
            method,
            path,
            "&".join(f"{quote(name, '-_.~')}={quote(value, '-_.~')}" for name, value in pairs),
            *(f"{name}:{' '.join(value.split())}" for name, value in sorted(headers.items())),
            "",
            ";".join(sorted(headers)),
            body_hash,
        ]
    )
    to_sign = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


@dataclass(frozen=True)
class Stored:
    """An object: its bytes, and the headers that belong to it."""

    content: bytes
    headers: dict[str, str]


@dataclass
class Received:
    """A call, recorded when its body is in."""

    action: str  # "put", "get", "head", "delete" or "list"
    name: str
    size: int = 0
    arrived_at: float = field(default_factory=time.monotonic)


class S3Double:
    """Serves from the moment it is made until `close()`."""

    access_key = "tests-only-key"
    secret_key = "tests-only-abcdefghijklmnopqrstuvwxyz"
    bucket = "images"
    region = "us-east-1"

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

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a server that keeps its images here."""
        return {
            "S3_ENDPOINT": self.url,
            "S3_BUCKET": self.bucket,
            "S3_ACCESS_KEY": self.access_key,
            "S3_SECRET_KEY": self.secret_key,
        }

    def reset(self) -> None:
        """Forget every object, call, planned failure and the delay; drop the calls that wait."""
        with self._lock:
            self.delay, self.page_size = 0.0, 1000
            self.stored: dict[str, Stored] = {}
            self.requests: list[Received] = []
        self.recover()

    def recover(self) -> None:
        """Fail no more; drop the calls that wait."""
        with self._lock:
            self._failures: dict[tuple[str, int], How] = {}
            self._always: dict[str, How] = {}
            self._released.set()
            self._released = threading.Event()

    def close(self) -> None:
        """Stop serving, and close keep-alive connections."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._released.set()
        self._server.hang_up()

    def fail(self, nth: int, how: How, action: str) -> None:
        """Let the `nth` call of `action` from now fail. "…_after" comes after the call has done its work."""
        with self._lock:
            self._failures[action, self.count(action) + nth] = how

    def fail_from(self, nth: int, how: How, action: str) -> None:
        """Let the `nth` call of `action` from now fail, and the calls after it: the client tries some again."""
        for later in range(nth, nth + 50):
            self.fail(later, how, action)

    def fail_always(self, how: How, *actions: str) -> None:
        """Let every call of these actions fail from now on."""
        self._always.update(dict.fromkeys(actions, how))

    def count(self, action: str) -> int:
        return sum(call.action == action for call in self.requests)

    def pictures(self) -> list[str]:
        """The names of the objects that are no thumbnails."""
        return sorted(name for name in self.stored if not name.endswith(".thumb.webp"))

    def plan_of(self, call: Received) -> How | None:
        """Note the call, wait for the delay or until the end of a "hang", and return how the call is to fail."""
        with self._lock:
            self.requests.append(call)
            how = self._failures.get((call.action, self.count(call.action)), self._always.get(call.action))
            released = self._released
        if released.wait(None if how == "hang" else self.delay):
            return "drop"
        return how

    def wait_for_release(self) -> None:
        self._released.wait()

    def authenticate(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
        """Raise Refused unless the signature is right: `sig-v4-header-based-auth`, `ErrorResponses`."""
        found = AUTHORIZATION.fullmatch(headers.get("authorization", ""))
        if found is None:
            raise Refused(403, "AccessDenied")
        if found["key"] != self.access_key:
            raise Refused(403, "InvalidAccessKeyId")
        if found["region"] != self.region:
            raise Refused(400, "AuthorizationHeaderMalformed")
        moment = headers.get("x-amz-date", "")
        at = datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs(datetime.now(UTC) - at) > SKEW or not moment.startswith(found["day"]):
            raise Refused(403, "RequestTimeTooSkewed")
        names = found["headers"].split(";")
        unsigned = {name for name in headers if name == "host" or name.startswith("x-amz-")} - set(names)
        if unsigned:
            raise Refused(403, "AccessDenied")
        body_hash = headers.get("x-amz-content-sha256", "")
        if body_hash != hashlib.sha256(body).hexdigest():  # over HTTP the client signs the body
            raise Refused(400, "XAmzContentSHA256Mismatch")
        url = urlsplit(target)
        signed = {name: headers.get(name, "") for name in names}
        right = signature(self.secret_key, found["scope"], moment, method, url.path, url.query, signed, body_hash)
        if not hmac.compare_digest(right, found["signature"]):
            raise Refused(403, "SignatureDoesNotMatch")

    def put(self, name: str, content: bytes, headers: Mapping[str, str]) -> None:
        """`API_PutObject`, with the check of Content-MD5 where there is one."""
        md5 = headers.get("content-md5")
        if md5 and md5 != b64encode(hashlib.md5(content).digest()).decode():
            raise Refused(400, "BadDigest")
        kept = {n: v for n, v in headers.items() if n == "content-type" or n.startswith("x-amz-meta-")}
        with self._lock:
            self.stored[name] = Stored(content, kept)

    def get(self, name: str) -> Stored:
        """`API_GetObject`"""
        if name not in self.stored:
            raise Refused(404, "NoSuchKey")
        return self.stored[name]

    def another_than(self, name: str) -> Stored:
        """Another object of the same kind, as a server answers it whose index is wrong."""
        kind = name.endswith(".thumb.webp")
        return next(
            one for other, one in self.stored.items() if other != name and other.endswith(".thumb.webp") is kind
        )

    def list_page(self, query: Mapping[str, str]) -> bytes:
        """`API_ListObjectsV2`, a page at a time."""
        after, size = query.get("continuation-token", ""), min(self.page_size, int(query.get("max-keys", "1000")))
        names = sorted(name for name in self.stored if name.startswith(query.get("prefix", "")) and name > after)
        more = len(names) > size
        contents = "".join(f"<Contents><Key>{escape(quote(name))}</Key></Contents>" for name in names[:size])
        token = f"<NextContinuationToken>{names[size - 1]}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><Name>{self.bucket}</Name><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"<EncodingType>url</EncodingType>{token}{contents}</ListBucketResult>"
        ).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    wbufsize = -1  # headers and body leave together
    disable_nagle_algorithm = True  # it would hold the rest of a long answer for 40 ms
    double: S3Double

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(length := int(self.headers.get("Content-Length", "0")))
        if len(body) < length:  # a client that left half-way made no call
            self.close_connection = True
            return
        url = urlsplit(self.path)
        bucket, _, name = unquote(url.path).lstrip("/").partition("/")
        action = self.command.lower() if name else "list"
        how = self.double.plan_of(Received(action, name, len(body)))
        if how == "drop":
            self.close_connection = True
            return
        if how == "500":
            self._refuse(500, "InternalError")
            return
        headers = {header.lower(): value for header, value in self.headers.items()}
        try:
            self.double.authenticate(self.command, self.path, headers, body)
            if bucket != self.double.bucket:
                raise Refused(404, "NoSuchBucket")
            answer = self._do(action, name, body, headers, how)
        except Refused as refused:
            self._refuse(*refused.args)
            return
        if how in ("drop_after", "hang_after"):
            if how == "hang_after":
                self.double.wait_for_release()
            self.close_connection = True
            return
        self._send(200 if answer else 204, answer or Stored(b"", {}), how)

    do_PUT = do_GET = do_HEAD = do_DELETE = _serve

    def _do(self, action: str, name: str, body: bytes, headers: Mapping[str, str], how: How | None) -> Stored | None:
        """Do the call and return its answer; None for 204."""
        if how == "lose":
            raise Refused(404, "NoSuchKey")
        if isinstance(how, bytes):
            return Stored(how, {})
        if action == "list":
            return Stored(self.double.list_page(dict(parse_qsl(urlsplit(self.path).query))), {})
        if action == "put":
            self.double.put(name, body[::-1] if how == "garble" else body, headers)
            return Stored(b"", {"etag": f'"{hashlib.md5(body).hexdigest()}"'})
        if action == "delete":
            self.double.stored.pop(name, None)
            return None
        return self.double.another_than(name) if how == "swap" else self.double.get(name)

    def _refuse(self, status: int, code: str) -> None:
        error = f"<Error><Code>{code}</Code><Message>{code}</Message><Resource>{escape(self.path)}</Resource></Error>"
        self._send(
            status, Stored(b"" if self.command == "HEAD" else error.encode(), {"content-type": "application/xml"})
        )

    def _send(self, status: int, answer: Stored, how: How | None = None) -> None:
        self.send_response(status)
        for header, value in {"content-type": "application/xml", **answer.headers}.items():
            self.send_header(header, value)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if how == "cut_short":
            self.wfile.write(answer.content[: len(answer.content) // 2])
            self.close_connection = True
            return
        if how == "trickle":
            self._trickle(answer.content)
            return
        self.wfile.write(answer.content)

    def _trickle(self, content: bytes) -> None:
        """Send a byte every tenth of a second: no timeout for one read ends this."""
        for at in range(len(content)):
            self.wfile.write(content[at : at + 1])
            self.wfile.flush()
            time.sleep(0.1)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Serve a double of S3 until killed.")
    options.add_argument("--port", type=int, default=9000)
    options.add_argument("--delay", type=float, default=0.0, help="seconds each call takes")
    double = S3Double(**vars(options.parse_args()))
    sys.stdout.writelines(f"{name}={value}\n" for name, value in double.settings.items())
    sys.stdout.flush()
    threading.Event().wait()
