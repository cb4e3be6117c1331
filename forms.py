"""A multipart form as it arrives: its limits, its fields, its files (RFC 7578)."""

from typing import IO, Any

from flask import Request, request
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.formparser import FormDataParser

import errors

JSON_LIMIT = 2 * 1024 * 1024  # bytes of a body without files
MOST_FILES = 50
FILE_LIMIT = 20 * 1024 * 1024  # bytes of one file
FORM_LIMIT = MOST_FILES * (FILE_LIMIT + 1024) + JSON_LIMIT


class _LoudParser(FormDataParser):
    """Werkzeug reads a broken form as an empty one; this one says so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "silent": False})


class APIRequest(Request):
    form_data_parser_class = _LoudParser

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received: list[IO[bytes]] = []

    def _get_file_stream(self, *args: Any, **kwargs: Any) -> IO[bytes]:
        self._received.append(super()._get_file_stream(*args, **kwargs))
        return self._received[-1]

    def close(self) -> None:
        """The files of a form that was refused half-way, too: Werkzeug closes those of a whole one only."""
        for file in self._received:
            file.close()


def fields() -> MultiDict[str, str]:
    """The fields that are no files. Raises `BadRequest`, and `Invalid` for files under another name than `images`."""
    request.max_content_length = FORM_LIMIT
    try:
        form = request.form
    except ValueError:
        raise errors.BadRequest("The body is not a well-formed multipart/form-data.") from None
    if unknown := {name: ["No file is taken here."] for name in request.files if name != "images"}:
        raise errors.Invalid(unknown)
    return form


def images() -> list[FileStorage]:
    """The files named `images`. A form without a chosen file sends one without a name."""
    return [file for file in request.files.getlist("images") if file.filename]
