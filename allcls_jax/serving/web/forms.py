"""Forms with files, read into memory as they come and never put on a disk.

The names that a client gives are shown and used for nothing else.
"""

import dataclasses
import unicodedata
from collections.abc import AsyncIterable, Callable

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from allcls_jax.serving.web.limits import Limits, Refused

_FIELDS = 16  # of a form, besides its files
_FIELD_BYTES = 4096
_NAME_LENGTH = 240


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """One file of a form: the name that the client shows for it, and its bytes."""

    name: str
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """What a client sent: files in order, and the other fields by name."""

    files: list[File]
    fields: dict[str, str]


async def read_form(
    stream: AsyncIterable[bytes],
    content_type: str,
    limits: Limits,
    take: Callable[[int], None],
) -> Form:
    """Reads a form (multipart/form-data) as it comes, into memory.

    Args:
      stream: the body; how long it may be is for who gives it to know.
      content_type: its header.
      limits: of the request.
      take: is called with the number of bytes of each piece before it is kept.

    Raises:
      Refused: if it is something else, broken, or more than is allowed.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refused(
            415,
            f"the upload is of type {content_type[:80] or 'none'}",
            "send a form, multipart/form-data, with the pictures in the field files",
        )
    reader = _FormReader(limits)
    try:
        parser = python_multipart.MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": reader.begin,
                "on_header_begin": reader.begin_header,
                "on_header_field": reader.add_header_name,
                "on_header_value": reader.add_header_value,
                "on_header_end": reader.end_header,
                "on_headers_finished": reader.end_headers,
                "on_part_data": reader.add,
                "on_part_end": reader.end,
                "on_end": reader.finish,
            },
        )
        async for piece in stream:
            take(len(piece))
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise _broken_form(str(error)) from error
    if not reader.finished:
        raise _broken_form("it ends too early")
    return reader.form


def shown_name(name: bytes) -> str:
    """Returns a client's name of a file as one line that can be shown."""
    text = name[: 4 * _NAME_LENGTH].decode("utf-8", "replace")
    kept = (" " if unicodedata.category(one)[0] == "C" else one for one in text)
    return "".join(kept).strip()[:_NAME_LENGTH]


class _FormReader:
    """Gathers what the parser of a form finds."""

    def __init__(self, limits: Limits):
        self.form = Form([], {})
        self.finished = False
        self._limits = limits
        self._headers: dict[bytes, bytes] = {}
        self._header = (bytearray(), bytearray())
        self._field = ""
        self._file: str | None = None
        self._pieces: list[bytes] = []
        self._length = 0
        self._parts = 0

    def begin(self) -> None:
        """A part begins."""
        self._parts += 1
        if self._parts > self._limits.max_files + _FIELDS:
            raise Refused(
                413,
                f"the upload has more than {self._limits.max_files:,} files",
                "send fewer at once",
            )
        self._headers, self._pieces, self._length = {}, [], 0

    def begin_header(self) -> None:
        """A header of a part begins."""
        self._header = (bytearray(), bytearray())

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._header[0].extend(data[start:end])

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's value."""
        self._header[1].extend(data[start:end])

    def end_header(self) -> None:
        """A header of a part is complete."""
        name, value = map(bytes, self._header)
        self._headers[name.lower()] = value

    def end_headers(self) -> None:
        """All headers of a part are there: is it a file or a field?"""
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        if b"name" not in options:
            raise _broken_form("a part has no name")
        self._field = options[b"name"].decode("utf-8", "replace")
        name = options.get(b"filename")
        self._file = None if name is None else shown_name(name)
        if self._file is None and len(self.form.fields) >= _FIELDS:
            raise _broken_form(f"it has more than {_FIELDS} fields")

    def add(self, data: bytes, start: int, end: int) -> None:
        """A piece of a part."""
        self._length += end - start
        if self._file is None and self._length > _FIELD_BYTES:
            raise _broken_form(f"the field {self._field[:40]!r} is too long")
        self._pieces.append(data[start:end])

    def end(self) -> None:
        """A part is complete."""
        data = b"".join(self._pieces)
        self._pieces = []
        if self._file is None:
            self.form.fields[self._field] = data.decode("utf-8", "replace")
        elif self._file or data:  # a form with nothing chosen sends an empty file
            self.form.files.append(File(self._file or "unnamed", data))

    def finish(self) -> None:
        """The form is complete."""
        self.finished = True


def _broken_form(why: str) -> Refused:
    return Refused(400, f"the form cannot be read: {why}", "send it again")
