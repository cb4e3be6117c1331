"""The Cloudinary double answers the real SDK as Cloudinary does."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import cloudinary.uploader
import cloudinary.utils
import pytest
from cloudinary.exceptions import AuthorizationRequired, BadRequest, Error, GeneralError
from PIL import Image

from testing.cloudinary_double import CloudinaryDouble


@pytest.fixture
def double() -> Iterator[CloudinaryDouble]:
    with CloudinaryDouble() as running:
        yield running


def picture(form: str = "PNG", size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, "red").save(buffer, form)
    return buffer.getvalue()


def account(double: CloudinaryDouble) -> dict[str, Any]:
    keys = {"cloud_name": double.cloud_name, "api_key": double.api_key, "api_secret": double.api_secret}
    return {**keys, "upload_prefix": double.url, "timeout": 5}


def upload(double: CloudinaryDouble, content: bytes | None = None, **options: Any) -> dict[str, Any]:
    chosen = {**account(double), "type": "authenticated", "public_id": "scan", **options}
    answer: dict[str, Any] = cloudinary.uploader.upload(BytesIO(content or picture()), **chosen)
    return answer


def destroy(double: CloudinaryDouble, public_id: str = "scan", **options: Any) -> str:
    chosen = {**account(double), "type": "authenticated", "invalidate": True, **options}
    return str(cloudinary.uploader.destroy(public_id, **chosen)["result"])


def delivery_url(double: CloudinaryDouble, public_id: str, **options: Any) -> str:
    """The SDK's own signed URL, led to the double."""
    chosen = {"type": "authenticated", "sign_url": True, "format": "png", **options}
    url, _ = cloudinary.utils.cloudinary_url(public_id, **account(double), secure=True, **chosen)
    return str(url).replace("https://res.cloudinary.com", double.url)


def fetch(url: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_an_upload_is_stored_and_described(double):
    content = picture("JPEG", (40, 30))
    answer = upload(double, content, public_id="reports/scan")
    kept = double.stored["reports/scan"]
    assert (kept.content, kept.type, kept.format) == (content, "authenticated", "jpg")
    assert (kept.width, kept.height) == (40, 30)
    assert answer["public_id"] == "reports/scan"
    assert (answer["type"], answer["resource_type"], answer["format"]) == ("authenticated", "image", "jpg")
    assert (answer["width"], answer["height"], answer["bytes"]) == (40, 30, len(content))
    assert {"asset_id", "created_at", "etag", "secure_url", "url", "version"} <= answer.keys()


def test_the_answer_carries_the_signature_that_the_sdk_expects(double):
    answer = upload(double)
    signed = {"public_id": "scan", "version": answer["version"]}
    secret = double.api_secret
    assert answer["signature"] == cloudinary.utils.api_sign_request(signed, secret, signature_version=1)


def test_an_upload_without_a_type_is_public(double):
    answer = upload(double, type=None)
    assert double.stored["scan"].type == answer["type"] == "upload"
    assert "/s--" not in answer["secure_url"]
    assert fetch(answer["secure_url"])[0] == 200


def test_an_upload_without_a_public_id_is_given_one(double):
    first, second = upload(double, public_id=None), upload(double, public_id=None)
    assert double.stored.keys() == {first["public_id"], second["public_id"]}
    assert len(double.stored) == 2


@pytest.mark.parametrize(("form", "kind"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif")])
def test_the_url_of_an_upload_delivers_the_very_bytes(double, form, kind):
    content = picture(form)
    answer = upload(double, content)
    assert answer["url"] == answer["secure_url"]
    assert fetch(answer["secure_url"]) == (200, f"image/{kind}", content)


@pytest.mark.parametrize("public_id", ["scan", "reports/2027/scan", "knee & hip, left"])
def test_the_url_of_an_upload_is_the_one_that_the_sdk_signs(double, public_id):
    answer = upload(double, public_id=public_id)
    assert answer["secure_url"] == delivery_url(double, public_id, version=answer["version"])
    assert fetch(answer["secure_url"])[0] == 200


@pytest.mark.parametrize("option", [{"signature_algorithm": "sha256"}, {"long_url_signature": True}, {"version": 1}])
def test_every_signature_that_the_sdk_can_make_opens_an_image(double, option):
    upload(double)
    assert fetch(delivery_url(double, "scan", **option))[0] == 200


def test_an_authenticated_image_is_not_delivered_without_its_signature(double):
    one, other = upload(double)["url"], upload(double, public_id="other")["url"]
    signature = one.split("/")[6]
    assert signature.startswith("s--")
    assert fetch(one.replace(f"{signature}/", ""))[0] == 401
    assert fetch(one.replace(signature, "s--AAAAAAAA--"))[0] == 401
    assert fetch(other.replace(other.split("/")[6], signature))[0] == 401
    assert fetch(one.replace("/authenticated/", "/upload/").replace(f"{signature}/", ""))[0] == 404


def test_a_signed_url_of_no_image_is_not_found(double):
    assert fetch(delivery_url(double, "never-uploaded"))[0] == 404


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"api_secret": "wrong"}, "Invalid Signature"),
        ({"api_key": "999"}, "Unknown API key 999"),
        ({"cloud_name": "elsewhere"}, "Invalid cloud_name elsewhere"),
    ],
)
def test_a_call_with_other_keys_is_refused(double, option, message):
    upload(double)
    with pytest.raises(AuthorizationRequired, match=message):
        upload(double, public_id="second", **option)
    with pytest.raises(AuthorizationRequired, match=message):
        destroy(double, **option)
    assert double.stored.keys() == {"scan"}


def test_a_parameter_that_is_not_signed_is_refused(double):
    with pytest.raises(AuthorizationRequired, match=r"Invalid Signature \w+\. String to sign - 'overwrite=1&"):
        upload(double, overwrite=True, non_signable=["overwrite"])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_signatures_of_both_versions_and_algorithms_are_right(double, version, algorithm):
    tricky = {"public_id": "a&b=c", "detection": ["one", "two"], "tags": ["x", "y"], "context": {"k": "v&w"}}
    upload(double, signature_version=version, signature_algorithm=algorithm, **tricky)
    (call,) = double.requests
    assert call.params["detection"] == "one,two"
    assert "a&b=c" in double.stored


def test_a_request_signed_over_an_hour_ago_is_stale(double, monkeypatch):
    monkeypatch.setattr(cloudinary.utils, "now", lambda: str(int(time.time()) - 3590))
    upload(double)
    monkeypatch.setattr(cloudinary.utils, "now", lambda: str(int(time.time()) - 3610))
    with pytest.raises(BadRequest, match=r"Stale request - reported time is .* which is more than 1 hour ago"):
        upload(double, public_id="late")
    assert double.stored.keys() == {"scan"}


@pytest.mark.parametrize("content", [b"no image", picture()[:-20], b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_image_is_refused(double, content):
    with pytest.raises(BadRequest, match="Invalid image file"):
        upload(double, content)
    assert double.stored == {}


def test_an_upload_without_a_file_is_refused(double):
    with pytest.raises(BadRequest, match="Missing required parameter - file"):
        cloudinary.uploader.upload(None, **account(double), public_id="scan")


def test_a_public_id_is_taken_over_only_if_overwriting_is_allowed(double):
    old, new = picture(size=(1, 1)), picture(size=(2, 2))
    first = upload(double, old)
    again = upload(double, new, overwrite=False)
    assert (again["existing"], again["asset_id"], again["width"]) == (True, first["asset_id"], 1)
    assert double.stored["scan"].content == old
    over = upload(double, new)
    assert "existing" not in over
    assert double.stored["scan"].content == new


def test_destroy_forgets_an_image_once(double):
    url = upload(double)["url"]
    assert destroy(double) == "ok"
    assert double.stored == {}
    assert fetch(url)[0] == 404
    assert destroy(double) == "not found"


def test_destroy_finds_an_image_only_under_its_type(double):
    upload(double)
    assert destroy(double, type=None) == "not found"
    assert destroy(double, type="private") == "not found"
    assert "scan" in double.stored


def test_every_call_is_recorded_in_order(double):
    before = time.monotonic()
    upload(double, tags=["x-ray"])
    destroy(double)
    made, undone = double.requests
    assert [(call.action, call.public_id) for call in (made, undone)] == [
        ("upload", "scan"),
        ("destroy", "scan"),
    ]
    assert made.params["tags"] == "x-ray"
    assert (made.params["api_key"], undone.params["invalidate"]) == (double.api_key, "1")
    assert made.size == len(picture())
    assert before < made.arrived_at < made.answered_at < undone.arrived_at < time.monotonic()


@pytest.mark.parametrize(
    ("how", "error", "message", "stored"),
    [
        ("500", GeneralError, "Internal Server Error", False),
        ("drop", Error, "Connection aborted", False),
        ("drop_after_store", Error, "Connection aborted", True),
        ("hang", Error, "Read timed out", False),
    ],
)
def test_an_upload_fails_as_planned_and_the_next_succeeds(double, how, error, message, stored):
    double.fail(1, how)
    with pytest.raises(error, match=message):
        upload(double, timeout=0.2)
    assert ("scan" in double.stored) is stored
    assert len(double.requests) == 1  # the SDK has not tried again
    upload(double)


def test_a_failure_is_counted_from_when_it_is_planned_and_by_action(double):
    upload(double)
    double.fail(2, "500")
    double.fail(1, "500", action="destroy")
    upload(double, public_id="second")
    with pytest.raises(GeneralError):
        upload(double, public_id="third")
    with pytest.raises(GeneralError):
        destroy(double)
    assert destroy(double) == "ok"
    assert double.stored.keys() == {"second"}


def test_uploads_in_flight_together_are_counted_with_their_bytes(double):
    double.delay = 0.3
    contents = [picture(size=(side, side)) for side in (10, 200, 400)]
    with ThreadPoolExecutor(3) as pool:
        uploads = [pool.submit(upload, double, content, public_id=str(n)) for n, content in enumerate(contents)]
        while len(double.requests) < 3:
            time.sleep(0.001)
        destroy(double)  # is no upload, and not counted
        assert not any(upload.done() for upload in uploads)
    assert double.in_flight_peak == 3
    assert double.in_flight_bytes_peak == sum(map(len, contents))


def test_uploads_one_after_the_other_are_never_in_flight_together(double):
    assert (double.in_flight_peak, double.in_flight_bytes_peak) == (0, 0)
    contents = [picture(size=(side, side)) for side in (10, 400, 20)]
    for n in range(3):
        upload(double, contents[n], public_id=str(n))
        destroy(double, str(n))
    assert (double.in_flight_peak, double.in_flight_bytes_peak) == (1, len(contents[1]))


def test_an_upload_takes_the_delay(double):
    double.delay = 0.2
    started = time.monotonic()
    upload(double)
    assert time.monotonic() - started >= 0.2


def test_one_connection_is_kept_for_many_calls_errors_included(double):
    def kept_socket() -> socket.socket | None:
        return cloudinary.uploader._http.connection_from_url(double.url).pool.queue[-1].sock

    upload(double)
    first = kept_socket()
    assert first is not None
    destroy(double)
    with pytest.raises(AuthorizationRequired):
        upload(double, api_secret="wrong")
    upload(double)
    assert kept_socket() is first


@pytest.mark.parametrize(("second", "delay"), [("hang", 0.0), ("drop_after_store", 3.0)])
def test_reset_forgets_everything_and_drops_the_call_that_waits(double, second, delay):
    double.fail(2, second)
    double.fail(3, "500")
    upload(double)
    double.delay = delay
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(upload, double)
        while len(double.requests) < 2:
            time.sleep(0.001)
        double.reset()
        with pytest.raises(Error, match="Connection aborted"):
            hung.result(2)
    assert (double.stored, double.requests, double.delay) == ({}, [], 0.0)
    for _ in range(3):
        upload(double)


def test_close_ends_kept_connections_their_threads_and_what_hangs():
    before = set(threading.enumerate())
    with CloudinaryDouble() as double:
        double.fail(1, "hang")
        with pytest.raises(Error, match="Read timed out"):
            upload(double, timeout=0.1)
        upload(double)
        started = set(threading.enumerate()) - before
        assert len(started) == 3  # the server, what hangs, and the connection that is kept
        assert all(thread.daemon for thread in started)
    for thread in started:
        thread.join(2)
        assert not thread.is_alive()
    with pytest.raises(Error, match="Connection refused"):
        upload(double)


def test_a_client_that_leaves_half_way_makes_no_call_and_no_noise(double, capfd):
    leaving = http.client.HTTPConnection(double.url.removeprefix("http://"))
    leaving.putrequest("POST", f"/v1_1/{double.cloud_name}/image/upload")
    leaving.putheader("Content-Length", "1000")
    leaving.endheaders(b"half")
    leaving.close()
    upload(double)
    double.close()
    assert [call.public_id for call in double.requests] == ["scan"]
    assert capfd.readouterr() == ("", "")


def test_it_runs_from_the_shell_and_prints_the_settings(monkeypatch):
    script = Path(__file__).parent.parent / "testing" / "cloudinary_double.py"
    command = [sys.executable, str(script), "--port", "0", "--delay", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            line, prefix = served.stdout.readline().strip(), served.stdout.readline().strip()
            monkeypatch.setitem(os.environ, *line.split("=", 1))
            settings = cloudinary.Config()
            assert prefix == f"upload_prefix={settings.upload_prefix}"
            names = ("cloud_name", "api_key", "api_secret", "upload_prefix")
            started = time.monotonic()
            chosen = {name: getattr(settings, name) for name in names}
            answer = cloudinary.uploader.upload(picture(), type="authenticated", timeout=5, **chosen)
            assert time.monotonic() - started >= 0.2
            assert fetch(answer["secure_url"])[0] == 200
        finally:
            served.kill()
