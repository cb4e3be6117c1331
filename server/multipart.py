"""A multipart form as it arrives: its limits, its fields, its files (RFC 7578)."""

import os
from typing import IO, TYPE_CHECKING, Any

from flask import Request, request
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.formparser import FormDataParser

from server import errors

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

JSON_LIMIT = 2 * 1024 * 1024  # bytes of a body without files
MOST_FILES = 50
FILE_LIMIT = 20 * 1024 * 1024  # bytes of one file
FORM_LIMIT = MOST_FILES * (FILE_LIMIT + 1024) + JSON_LIMIT


class _LoudParser(FormDataParser):
    """Werkzeug reads a broken form as an empty one; this one says so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "silent": False})


class _Chunks:
    """A body in chunks (RFC 9112 section 7.1). What the server that reads them raises is the client's fault: they are
    malformed, or end too early."""

    def __init__(self, chunks: IO[bytes]) -> None:
        self._chunks = chunks

    def read(self, size: int = -1) -> bytes:
        try:
            return self._chunks.read(size)
        except Exception as error:
            raise errors.BadRequest("The body is not well-formed: its chunks are broken.") from error


class APIRequest(Request):
    form_data_parser_class = _LoudParser

    def __init__(self, environ: "WSGIEnvironment", *args: Any, **kwargs: Any) -> None:
        if "HTTP_TRANSFER_ENCODING" in environ:
            environ["wsgi.input"] = _Chunks(environ["wsgi.input"])
        super().__init__(environ, *args, **kwargs)
        self._received: list[IO[bytes]] = []

    def _get_file_stream(self, *args: Any, **kwargs: Any) -> IO[bytes]:
        self._received.append(super()._get_file_stream(*args, **kwargs))
        return self._received[-1]

    def close(self) -> None:
        """The files of a form that was refused half-way, too: Werkzeug closes those of a whole one only."""
        for file in self._received:
            file.close()


def json_body() -> bytes:
    """A JSON body as it came. Raises `TooLarge`."""
    body = request.get_data()
    if len(body) >= JSON_LIMIT:  # one in chunks is cut off there
        raise errors.TooLarge(f"JSON is taken up to {JSON_LIMIT >> 20} MB.")
    return body


def fields() -> MultiDict[str, str]:
    """The fields that are no files. Raises `BadRequest`, and `Invalid` for files under another name than `images`."""
    request.max_content_length = FORM_LIMIT
    try:
        form = request.form
    except ValueError:
        raise errors.BadRequest("The body is not a well-formed multipart/form-data.") from None
    if None in form or None in request.files:
        raise errors.BadRequest("Each part of the form needs a name.")
    if any("\ufffd" in text for pair in form.items(multi=True) for text in pair):  # what Werkzeug could not decode
        raise errors.BadRequest("The texts of the form are not UTF-8, or have U+FFFD in them, as text that was not.")
    if "images" in form:  # of a whole report that is sent back they would be ignored
        raise errors.Invalid(images="Send files under this name, not text: with curl, images=@front.jpg.")
    if unknown := {name: ["No file is taken here."] for name in request.files if name != "images"}:
        raise errors.Invalid(unknown)
    return form


def images() -> list[FileStorage]:
    """The files named `images`. A form without a chosen file sends one that is empty and has no name."""
    return [file for file in request.files.getlist("images") if file.filename or file.stream.seek(0, os.SEEK_END)]
