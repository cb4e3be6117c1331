"""Keeps images on Cloudinary, with the delivery type `authenticated`."""

import logging
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import IO

from clinic.stores.store import (
    CONNECT_TIMEOUT,
    DESTROY_TIMEOUT,
    FETCH_TIMEOUT,
    PIECE,
    UPLOAD_TIMEOUT,
    NoPicture,
    PictureRefused,
    StoredPicture,
    StoreError,
    failure,
    write_pieces,
)
from server.deadline import deadline, interruptible
from server.pictures import Picture, thumbnails

logging.getLogger("urllib3.connectionpool").setLevel(
    logging.ERROR
)  # the SDK's pool has one connection, and urllib3 warns of each further one
LONGEST_URL = 2_000  # characters of an image's URL; browsers and proxies take no longer ones

_AUTHENTICATED = "/image/authenticated/"
_CLOUDINARY_URL = re.compile(  # as an upload answers it; an account with a CDN of its own has its cloud in the host
    r"(?P<host>https?://(?:(?P<private_cloud>[\w-]+)-res\.)?[^/]+(?:/(?P<cloud>[^/]+))?)"
    + _AUTHENTICATED
    + r"(?:s--[\w-]+--/)?(?:v(?P<version>\d+)/)?(?P<public_id>[^/]+)\.(?P<format>\w+)"
)


class CloudinaryStore:
    """https://cloudinary.com/documentation/image_upload_api_reference"""

    name = "Cloudinary"

    def __init__(self, cloud_name: str, api_key: str, api_secret: str, upload_prefix: str) -> None:
        import cloudinary.exceptions  # it reads its own environment variables when imported, and may raise
        import cloudinary.uploader
        import cloudinary.utils
        from urllib3 import PoolManager, Timeout
        from urllib3.exceptions import HTTPError

        self._sdk = cloudinary.uploader
        interruptible(self._sdk._http)  # a private name, without which no call can be ended
        self._deliveries = PoolManager(timeout=Timeout(connect=CONNECT_TIMEOUT, read=FETCH_TIMEOUT))
        interruptible(self._deliveries)
        self._refusal = cloudinary.exceptions.BadRequest
        # the last three: the SDK does not check the JSON of an answer
        self._failures = cloudinary.exceptions.Error, HTTPError, OSError, KeyError, TypeError, AttributeError
        self._account = {
            "cloud_name": cloud_name,
            "api_key": api_key,
            "api_secret": api_secret,
            "upload_prefix": upload_prefix,
            "timeout": Timeout(connect=CONNECT_TIMEOUT, read=UPLOAD_TIMEOUT),
            # given here, because the SDK else takes them from its own environment variables
            "oauth_token": None,
            "upload_preset": None,
            "signature_version": 2,
            "signature_algorithm": "sha1",
        }
        self._sign_url = partial(  # all is given, as above
            cloudinary.utils.cloudinary_url,
            cloud_name=cloud_name,
            api_secret=api_secret,
            type="authenticated",
            sign_url=True,
            signature_algorithm="sha1",
            long_url_signature=False,
            auth_token=False,
            secure=True,
            shorten=False,
            use_root_path=False,
            responsive_width=False,
        )
        # the SDK takes 53 µs for a URL; a page of 100 reports with 3 images each would take 16 ms longer
        self.thumbnail_url = lru_cache(10_000)(self._thumbnail_url)

    def put(self, picture: Picture, public_id: str) -> str:
        try:
            content = ("image", picture.file.read())  # no file name: it may be a patient's name
            with deadline(UPLOAD_TIMEOUT):
                answer = self._sdk.upload(
                    content, public_id=public_id, type="authenticated", overwrite=False, **self._account
                )
            url = answer["secure_url"]
        except self._refusal as error:
            raise PictureRefused(str(failure(error))) from error
        except self._failures as error:
            raise failure(error) from error
        if not (isinstance(url, str) and len(url) <= LONGEST_URL and re.fullmatch(r"https?://[!-~]+", url)):
            raise StoreError("Cloudinary's answer has no URL")
        return url

    def fetch(self, picture: StoredPicture, into: IO[bytes]) -> None:
        answer = None
        try:
            with deadline(UPLOAD_TIMEOUT):
                answer = self._deliveries.request("GET", picture.image_url, preload_content=False, retries=False)
                if answer.status == 200:
                    write_pieces(answer.stream(PIECE, decode_content=False), into, picture.bytes)
        except self._failures as error:
            raise failure(error) from error
        finally:
            if answer:
                answer.close()
        if answer.status == 404:
            raise NoPicture(f"{self.name} has no such picture")
        if answer.status != 200:
            raise StoreError(f"{self.name} answers {answer.status} to the URL of the picture")

    def destroy(self, public_id: str) -> None:
        try:
            with deadline(DESTROY_TIMEOUT):
                self._sdk.destroy(public_id, type="authenticated", invalidate=True, **self._account)
        except self._failures as error:
            raise failure(error) from error

    def public_ids(self) -> Iterator[str]:
        import cloudinary.api  # the Admin API; nothing else needs it

        cursor: str | None = None
        while True:
            asked = {"type": "authenticated", "resource_type": "image", "max_results": 500, "next_cursor": cursor}
            try:
                answer = cloudinary.api.resources(**asked, **self._account)
                found = [str(picture["public_id"]) for picture in answer["resources"]]
            except self._failures as error:
                raise failure(error) from error
            yield from found
            cursor = answer.get("next_cursor")
            if not cursor:
                return

    def _thumbnail_url(self, image_url: str) -> str:
        """Return the signed URL at which Cloudinary makes the thumbnail of an image. It turns the picture upright.

        The URL of an image in another account, whose secret we do not have, is returned as it is.
        """
        parts = _CLOUDINARY_URL.fullmatch(image_url)
        if parts is None or self._account["cloud_name"] not in (parts["cloud"], parts["private_cloud"]):
            return image_url
        size = {"crop": "limit", "width": thumbnails.SIDE, "height": thumbnails.SIDE}
        signed, _ = self._sign_url(parts["public_id"], version=parts["version"], format=parts["format"], **size)
        path: str = signed.partition(_AUTHENTICATED)[2]
        return parts["host"] + _AUTHENTICATED + path
