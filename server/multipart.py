"""Reads a multipart form part by part (RFC 7578), and refuses it at the first part that is not taken.

Werkzeug's own parser keeps every part of a form before anybody can look at it.
"""

from collections.abc import Collection, Iterator
from functools import cached_property
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any

from flask import Request, g, request
from werkzeug.datastructures import FileStorage
from werkzeug.formparser import MultiPartParser
from werkzeug.routing import Rule
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from server import errors, seen

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

MB = 1024 * 1024
MOST_FILES = 50
FILE_LIMIT = 20 * MB  # bytes of one file
FORM_LIMIT = MOST_FILES * (FILE_LIMIT + 1024) + 2 * MB  # bytes
MOST_PARTS = 1_000  # of them most are empty file inputs
PIECE = 64 * 1024  # bytes that are read at once
IN_MEMORY = 500 * 1024  # bytes of a file; a larger one goes to a temporary file
LONGEST_HEADERS = 2 * PIECE  # bytes of what precedes the content of a part
ONLY_ONCE = "Please give the {field} only once."
_charset = MultiPartParser().get_part_charset


class _Body:
    """The body of a request in chunks, which the development server reads (RFC 9112 section 7.1)."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """Raise `BadRequest` for broken chunks: what the server that reads them raises is the client's fault."""
        try:
            return self._stream.read(size)
        except Exception as error:
            raise errors.BadRequest("The body is not well-formed: its chunks are broken.") from error


class APIRequest(Request):
    """A request that leaves no file open, and whose rule outlives it: the log names it once all is answered."""

    def __init__(self, environ: "WSGIEnvironment", *args: Any, **kwargs: Any) -> None:
        if "HTTP_TRANSFER_ENCODING" in environ:
            environ["wsgi.input"] = _Body(environ["wsgi.input"])
        self._files: list[IO[bytes]] = []
        super().__init__(environ, *args, **kwargs)

    @property
    def url_rule(self) -> Rule | None:
        """The rule of the route."""
        return self.environ.get(seen.RULE)

    @url_rule.setter
    def url_rule(self, rule: Rule | None) -> None:
        self.environ[seen.RULE] = rule

    @cached_property
    def blueprints(self) -> list[str]:
        """The blueprints of the route. Flask looks for them three times."""
        return super().blueprints

    def temporary_file(self) -> IO[bytes]:
        """Return a new file that lasts as long as this request."""
        self._files.append(SpooledTemporaryFile(IN_MEMORY))  # noqa: SIM115
        return self._files[-1]

    def close(self) -> None:
        """Close the files. Flask calls this before the answer is sent."""
        for file in self._files:
            file.close()


def read(names: Collection[str], text_limit: int) -> dict[str, str]:
    """Return the texts of the form by name, and keep its files for `images()`.

    Reads on only while each part is taken: a text of one of these names, or a file named `images`. All texts together
    take `text_limit` bytes at most. Raises `BadRequest`, `Invalid`, `TooLarge`, or `Unavailable` on a full disk.
    """
    request.max_content_length = FORM_LIMIT
    form = _Form(names, text_limit)
    try:
        for event in _events():
            if isinstance(event, Field | File):
                form.begin(event)
            elif isinstance(event, Data):
                form.take(event.data)
                if not event.more_data:
                    form.end()
    except ValueError:
        raise errors.BadRequest("The body is not a well-formed multipart/form-data.") from None
    g.images = form.images
    return form.texts


def of_file(name: str | None) -> str:
    """Return the beginning of a sentence about a file."""
    return f"The file {errors.printable(name or 'without a name')}"


def images() -> list[FileStorage]:
    """Return the files of this request's form. A form without a chosen file sends one that is empty and has no name."""
    images: list[FileStorage] = g.get("images", [])
    return images


def _events() -> Iterator[Event]:
    """Yield the beginnings of the parts and their data. Raises ValueError for a malformed form, or half of one."""
    boundary = request.mimetype_params.get("boundary", "").encode("ascii")
    if not boundary:
        raise ValueError("no boundary")
    decoder = MultipartDecoder(boundary, max_form_memory_size=LONGEST_HEADERS, max_parts=MOST_PARTS)
    while not isinstance(event := decoder.next_event(), Epilogue):
        if isinstance(event, NeedData):
            decoder.receive_data(request.stream.read(PIECE) or None)
        else:
            yield event


class _Form:
    """The parts of a form, taken one after another."""

    def __init__(self, names: Collection[str], text_limit: int) -> None:
        self.texts: dict[str, str] = {}
        self.images: list[FileStorage] = []
        self._names = names
        self._room = text_limit
        self._part: Field | File
        self._content: IO[bytes]
        self._size = 0  # of the content

    def begin(self, part: Field | File) -> None:
        self._part = part
        self._size = 0
        self._check_name(part.name, isinstance(part, File))
        self._content = request.temporary_file() if isinstance(part, File) else BytesIO()  # type: ignore[attr-defined]

    def _check_name(self, name: str | None, is_file: bool) -> None:
        if name is None:
            raise errors.BadRequest("Each part of the form needs a name.")
        fault = None
        if is_file:
            fault = f'Please send files as "images", not as "{errors.printable(name)}".' if name != "images" else None
        elif name == "images":
            # a whole report that is sent back has such a text, and would lose its images without a word
            fault = "Please send files as images, not text: with curl, images=@front.jpg."
        elif name in self.texts:
            fault = ONLY_ONCE
        elif name not in self._names:
            fault = errors.not_known(name)
        if fault:
            raise errors.Invalid({name: [fault]})

    def take(self, data: bytes) -> None:
        """Keep the next bytes of the part."""
        self._size += len(data)
        if isinstance(self._part, File):
            self._check_file(self._part)
        else:
            self._room -= len(data)
        if self._room < 0:
            raise errors.TooLarge("The texts of the form are larger than its fields can be.")
        try:
            self._content.write(data)
        except OSError as error:
            raise errors.no_room(error) from error

    def _check_file(self, part: File) -> None:
        if len(self.images) == MOST_FILES and (part.filename or self._size):
            raise errors.Invalid(images=f"At most {MOST_FILES} images can be sent at once.")
        if self._size > FILE_LIMIT:
            raise errors.TooLarge(f"{of_file(part.filename)} is larger than {FILE_LIMIT >> 20} MB.")

    def end(self) -> None:
        """Add the part to the texts or to the images."""
        part = self._part
        if isinstance(part, Field):
            self.texts[part.name] = self._text(part)
        elif part.filename or self._size:
            self._content.seek(0)
            self.images.append(FileStorage(self._content, part.filename, part.name, headers=part.headers))

    def _text(self, part: Field) -> str:
        self._content.seek(0)
        try:
            return self._content.read().decode(_charset(part.headers))
        except UnicodeDecodeError:
            raise errors.BadRequest("The texts of the form are not UTF-8.") from None
