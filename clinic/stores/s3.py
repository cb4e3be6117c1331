"""Keeps images in a bucket of an S3 server: MinIO, Ceph, Garage, AWS.

Readers never reach the bucket: `/media` sends the pictures under our own links.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from threading import BoundedSemaphore
from typing import IO
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

from clinic.stores.store import (
    CONNECT_TIMEOUT,
    DESTROY_TIMEOUT,
    FETCH_TIMEOUT,
    PIECE,
    THUMBNAIL,
    UPLOAD_TIMEOUT,
    NoPicture,
    StoredPicture,
    StoreError,
    copy_of,
    failure,
    public_id_of,
    write_pieces,
)
from models import Image
from server.deadline import deadline, interruptible
from server.logs import one_line
from server.pictures import Picture, thumbnails

log = logging.getLogger("hosi.media")

CONNECTIONS = 16  # that are kept open to the server
PATIENCE = 2  # seconds that a reader waits for a place
ONE_PART = 64 * 1024 * 1024  # bytes; larger than any picture, which is so sent by one request
LONGEST_THUMBNAIL = 1 << 20  # bytes; one of 320 x 320 pixels takes no more
SEAL = "x-amz-meta-seal"  # ties a thumbnail to its picture


class S3Store:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/

    An object's name is the public_id of the picture; the thumbnail's is that of `thumbnail_key`.
    """

    name = "S3"

    def __init__(self, readers: int, endpoint: str, bucket: str, access_key: str, secret_key: str, region: str) -> None:
        """`readers` is how many threads may wait for a picture at once: the others must go on when S3 does not."""
        import certifi
        from minio import Minio, S3Error
        from minio.error import MinioException
        from urllib3 import PoolManager, Retry, Timeout
        from urllib3.exceptions import HTTPError

        pools = PoolManager(
            maxsize=CONNECTIONS,
            timeout=Timeout(connect=CONNECT_TIMEOUT, read=FETCH_TIMEOUT),
            retries=Retry(total=1, connect=0, redirect=0, status=0),  # a kept connection that the server has closed
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        )
        interruptible(pools)
        url = urlsplit(endpoint)
        self._client = Minio(
            url.netloc,
            access_key=access_key,
            secret_key=secret_key,
            secure=url.scheme == "https",
            region=region,  # the client would else ask the server
            http_client=pools,
        )
        self._bucket = bucket
        self._readers = BoundedSemaphore(readers)
        self._s3_error = S3Error
        # those after OSError: the client does not check what the server answers
        self._failures = (
            MinioException,
            HTTPError,
            OSError,
            ParseError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        )

    @contextmanager
    def _call(self, seconds: float) -> Iterator[None]:
        """Raise `NoPicture` or `StoreError` for a failure of the block's call, which ends by a deadline."""
        try:
            with deadline(seconds):
                yield
        except self._failures as error:
            if isinstance(error, self._s3_error) and error.code == "NoSuchKey":
                raise NoPicture(f"{self.name} has no such picture") from error
            raise failure(error) from error

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Wait for one of the places of those who read pictures. Raises `StoreError`."""
        if not self._readers.acquire(timeout=PATIENCE):
            raise StoreError(f"too many readers wait for {self.name} already")
        try:
            yield
        finally:
            self._readers.release()

    def put(self, picture: Picture, public_id: str) -> str:
        self._put(public_id, picture.file, picture.bytes, f"image/{picture.format}")
        if not thumbnails.is_thumbnail(picture.width, picture.height, picture.bytes):
            try:
                picture.file.seek(0)
                self._put_thumbnail(public_id, thumbnails.make(picture.file, picture.format))
            except Exception as error:  # the picture itself is there
                log.warning("no thumbnail was made of %s: %s", public_id, one_line(str(error)))
        return f"{Image.ON_S3}{public_id}.{picture.format}"

    def _put(self, name: str, content: IO[bytes], size: int, kind: str, seal: str | None = None) -> None:
        with self._call(UPLOAD_TIMEOUT):
            stored = self._client.put_object(
                self._bucket,
                name,
                content,  # type: ignore[arg-type]
                size,
                kind,
                metadata={SEAL: seal} if seal else None,
                part_size=ONE_PART,
            )
        if not stored.etag:  # the answer was cut, or is not that of an S3 server
            raise StoreError(f"{self.name} does not say that it has the picture")

    def _put_thumbnail(self, public_id: str, content: bytes) -> None:
        self._put(public_id + THUMBNAIL, BytesIO(content), len(content), "image/webp", _seal(public_id, content))

    def fetch(self, picture: StoredPicture, into: IO[bytes]) -> None:
        self._get(public_id_of(Image.key_of(picture.image_url)), into, picture.bytes)

    def _get(self, name: str, into: IO[bytes], limit: int) -> Mapping[str, str]:
        """Write an object into the file, as `fetch` does, and return the headers of the answer."""
        with self._call(FETCH_TIMEOUT):
            answer = self._client.get_object(self._bucket, name)
            try:
                write_pieces(answer.stream(PIECE, decode_content=False), into, limit)
            finally:
                answer.close()  # a connection whose answer was read to its end has gone back to the pool
            return answer.headers

    def thumbnail(self, public_id: str) -> bytes | None:
        """Return the thumbnail of a picture; None if there is none, or another's. Raises `StoreError`."""
        content = BytesIO()
        try:
            headers = self._get(public_id + THUMBNAIL, content, LONGEST_THUMBNAIL)
        except NoPicture:
            return None
        if headers.get(SEAL) != _seal(public_id, content.getvalue()):
            log.error("%s gives another thumbnail than that of %s; the picture itself is shown", self.name, public_id)
            return None
        return content.getvalue()

    def add_thumbnail(self, picture: StoredPicture) -> None:
        key = Image.key_of(picture.image_url)
        public_id, _, format = key.partition(".")
        if self._has(public_id + THUMBNAIL):
            return
        with copy_of(self, picture) as file:
            content = thumbnails.make(file, format)
        self._put_thumbnail(public_id, content)
        if not self._has(public_id):  # it was destroyed meanwhile, perhaps before the thumbnail could be seen
            self._remove(public_id + THUMBNAIL)

    def _has(self, name: str) -> bool:
        try:
            with self._call(DESTROY_TIMEOUT):
                self._client.stat_object(self._bucket, name)
        except NoPicture:
            return False
        return True

    def destroy(self, public_id: str) -> None:
        # The picture first: a thumbnail that is being made of it is deleted again where the picture is gone.
        self._remove(public_id)
        self._remove(public_id + THUMBNAIL)

    def _remove(self, name: str) -> None:
        with suppress(NoPicture), self._call(DESTROY_TIMEOUT):
            self._client.remove_object(self._bucket, name)

    def public_ids(self) -> Iterator[str]:
        return (name for name in self._names() if not name.endswith(THUMBNAIL))

    def thumbnail_ids(self) -> Iterator[str]:
        return (name.removesuffix(THUMBNAIL) for name in self._names() if name.endswith(THUMBNAIL))

    def _names(self) -> Iterator[str]:
        try:
            for found in self._client.list_objects(self._bucket, recursive=True):
                yield str(found.object_name)
        except self._failures as error:
            raise failure(error) from error


def _seal(public_id: str, thumbnail: bytes) -> str:
    """Return what the thumbnail of this picture has beside it: the database does not know its sha256."""
    return hashlib.sha256(f"{public_id}:".encode() + thumbnail).hexdigest()
