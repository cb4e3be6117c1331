"""The double of S3 takes only what a real S3 would take; a real client speaks to another server, too."""

import hashlib
import io
from collections.abc import Iterator

import pytest
import urllib3
from client import Client, run_cli
from factories import MakeApp, make_patient, make_report, picture
from flask import Flask
from minio import Minio, S3Error
from moto.server import ThreadedMotoServer

from testing.s3_double import S3Double, signature

LARGE = picture("PNG", (1300, 900))


def test_a_signature_is_that_of_the_example_in_the_documentation() -> None:
    """docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "Example: GET Object"."""
    nothing = hashlib.sha256(b"").hexdigest()
    signed = {
        "host": "examplebucket.s3.amazonaws.com",
        "range": "bytes=0-9",
        "x-amz-content-sha256": nothing,
        "x-amz-date": "20130524T000000Z",
    }
    secret, scope = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524/us-east-1/s3/aws4_request"
    made = signature(secret, scope, signed["x-amz-date"], "GET", "/test.txt", "", signed, nothing)
    assert made == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"


def test_it_takes_the_requests_of_the_real_client_alone(s3: S3Double) -> None:
    def client(secret: str = s3.secret_key, region: str = s3.region) -> Minio:
        address = s3.url.removeprefix("http://")
        return Minio(address, s3.access_key, secret, region=region, secure=False)

    client().put_object(s3.bucket, "a b/ü+.png", io.BytesIO(b"one"), 3)
    assert [found.object_name for found in client().list_objects(s3.bucket, recursive=True)] == ["a b/ü+.png"]
    for wrong, code in ((client("another"), "SignatureDoesNotMatch"), (client(region="eu-west-1"), "Authorization")):
        with pytest.raises(S3Error) as refused:
            wrong.get_object(s3.bucket, "a b/ü+.png")
        assert str(refused.value.code).startswith(code)


def test_it_refuses_a_request_that_was_changed_or_is_old(s3: S3Double) -> None:
    http, sent = urllib3.PoolManager(), {}

    class Listener(urllib3.PoolManager):
        def urlopen(self, method: str, url: str, **kwargs: object) -> object:  # type: ignore[override]
            sent.update(url=url, headers=dict(kwargs["headers"]))  # type: ignore[call-overload]
            return super().urlopen(method, url, **kwargs)  # type: ignore[arg-type]

    real = Minio(
        s3.url.removeprefix("http://"),
        s3.access_key,
        s3.secret_key,
        secure=False,
        region="us-east-1",
        http_client=Listener(),
    )
    real.put_object(s3.bucket, "x", io.BytesIO(b"one"), 3)
    headers = sent["headers"]
    old = headers | {"x-amz-date": f"2020{headers['x-amz-date'][4:]}"}
    assert http.request("PUT", sent["url"], headers=headers, body=b"one").status == 200
    assert http.request("PUT", sent["url"], headers=headers, body=b"two").status == 400
    assert http.request("PUT", sent["url"] + "y", headers=headers, body=b"one").status == 403
    assert http.request("PUT", sent["url"], headers=old, body=b"one").status == 403
    assert http.request("PUT", sent["url"], body=b"one").status == 403
    assert s3.stored["x"].content == b"one"
    assert list(s3.stored) == ["x"]


@pytest.fixture(scope="module")
def moto_address() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


def test_a_report_and_its_images_live_and_die_on_another_s3_server(
    app: Flask, doctor: Client, make_app: MakeApp, moto_address: str
) -> None:
    other = Minio(moto_address, "key", "secret", secure=False, region="us-east-1")
    other.make_bucket("clinic")
    settings = {"S3_BUCKET": "clinic", "S3_ACCESS_KEY": "key", "S3_SECRET_KEY": "secret"}
    on_moto = make_app(**settings, S3_ENDPOINT=f"http://{moto_address}", INSTANCE_PATH=app.config["INSTANCE_PATH"])
    sender = Client(on_moto, doctor.token, doctor.user)
    report = make_report(sender, make_patient(sender)["id"], LARGE, picture("JPEG"))
    assert Client(on_moto).get(report["images"][0]["image_url"]).data == LARGE
    assert Client(on_moto).get(report["images"][0]["thumbnail_url"]).mimetype == "image/webp"
    assert run_cli(on_moto, "images", "verify")[0] == run_cli(on_moto, "images", "thumbnails")[0] == 0
    assert len(list(other.list_objects("clinic"))) == 3
    assert run_cli(on_moto, "images", "move", "--to", "local")[0] == 0
    assert list(other.list_objects("clinic")) == []
    assert run_cli(on_moto, "images", "move", "--to", "s3")[0] == 0
    assert run_cli(on_moto, "images", "verify")[0] == 0
    sender.delete("/reports/1")
    assert run_cli(on_moto, "purge", "--older-than", "0h")[0] == 0
    assert list(other.list_objects("clinic")) == []
