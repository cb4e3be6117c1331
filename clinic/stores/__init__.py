"""Has the stores of images, and says which of them the application uses."""

import ctypes
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, current_app

from clinic.stores.cloudinary_store import CloudinaryStore
from clinic.stores.local_disk import LocalStore
from clinic.stores.s3 import S3Store
from clinic.stores.store import Store, StoreError, ThumbnailStore

__all__ = ["S3Store", "Store", "StoreError", "Stores", "init_app", "origins", "stores"]

log = logging.getLogger("hosi.media")


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores that have images. A clinic that changed its store has images in several."""

    local: LocalStore
    cloudinary: CloudinaryStore | None
    s3: S3Store | None
    chosen: Store  # gets new images

    def __iter__(self) -> Iterator[Store]:
        return (store for store in (self.local, self.cloudinary, self.s3) if store)

    def named(self, name: str) -> Store:
        """Raises `StoreError`."""
        found = next((store for store in self if store.name == name), None)
        if found is None:
            raise StoreError(f"there are images on {name}, whose credentials are not set")
        return found

    def with_thumbnails(self) -> Iterator[ThumbnailStore]:
        """Yield the stores that keep a thumbnail beside each picture. Cloudinary makes thumbnails when it is asked."""
        yield self.local
        if self.s3:
            yield self.s3


def stores() -> Stores:
    """Return the stores of the current application."""
    kept: Stores = current_app.extensions["image_stores"]
    return kept


def origins(app: Flask) -> list[str]:
    """Return the origins of the links to images: of the clinic's page, PUBLIC_URL (S3 too) and Cloudinary."""
    links = [app.config["PUBLIC_URL"]]
    if app.extensions["image_stores"].cloudinary:
        private = f"https://{app.config['CLOUDINARY_CLOUD_NAME']}-res.cloudinary.com"  # of an account with its own CDN
        links += ["https://res.cloudinary.com", private, app.config["CLOUDINARY_UPLOAD_PREFIX"]]
    return ["{0.scheme}://{0.netloc}".format(urlsplit(link)) for link in links if link]


def _give_memory_back() -> None:
    """Make glibc return freed blocks over 1 MB to the system at once (mallopt(3), M_MMAP_THRESHOLD is -3).

    bench/uploads.py measures 91 MB of memory growth without, 15 MB with.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-3, 1 << 20)


def init_app(app: Flask) -> None:
    """Make the stores of the application."""
    _give_memory_back()
    setting = app.config
    account = [setting[f"CLOUDINARY_{part}"] for part in ("CLOUD_NAME", "API_KEY", "API_SECRET", "UPLOAD_PREFIX")]
    bucket = [setting[f"S3_{part}"] for part in ("ENDPOINT", "BUCKET", "ACCESS_KEY", "SECRET_KEY", "REGION")]
    readers = max(1, setting["WEB_THREADS"] // 2)
    made: dict[str, Any] = {
        "local": LocalStore(setting["INSTANCE_PATH"] / "images"),
        "cloudinary": CloudinaryStore(*account) if all(account) else None,
        "s3": S3Store(readers, *bucket) if all(bucket) else None,
    }
    chosen = (
        made[setting["IMAGE_STORE"]] if setting["IMAGE_STORE"] else made["cloudinary"] or made["s3"] or made["local"]
    )
    app.extensions["image_stores"] = Stores(**made, chosen=chosen)
    log.info("images are kept on %s", chosen.name)
