"""The pictures of an upload: its files, and what is packed in its zips.

Nothing that a zip tells of itself is trusted: entries are counted before they are
listed, bytes while they are unpacked, one picture at a time and only in memory.
"""

import dataclasses
import io
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence

from allcls_jax.data import files
from allcls_jax.errors import InputError
from allcls_jax.serving.web.forms import File, shown_name
from allcls_jax.serving.web.limits import Limits, Refused, in_mib

# Entries of a zip for each picture that is allowed: folders, notes, masks.
_ENTRIES = 4
_ENTRY_MARK = b"PK\x01\x02"
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_CHUNK = 1 << 16
# What unpacks in steps of a bounded size; bzip2 and LZMA do not.
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclasses.dataclass(frozen=True, slots=True)
class Upload:
    """One picture: what it is called, and how to get its bytes (or an InputError)."""

    name: str
    read: Callable[[], bytes]


def uploads_of(given: Sequence[File], limits: Limits) -> tuple[list[Upload], list[str]]:
    """Returns the pictures of an upload, those of its zips among them, in order.

    A zip that cannot be opened is one picture, which cannot be read. Its files that are
    no pictures by their names are passed over.

    Args:
      given: as they came.
      limits: of the request.

    Returns:
      The pictures, and the names of what was passed over.

    Raises:
      Refused: if there are none, or too many.
    """
    unpacked = _Budget(limits.max_unpacked)
    found: list[Upload] = []
    passed_over: list[str] = []
    for file in given:
        if not is_zip(file):
            found.append(Upload(file.name, lambda data=file.data: data))
            continue
        try:
            inside, others = _members(file, limits, unpacked)
        except InputError as error:
            found.append(Upload(file.name, lambda error=error: _raise(error)))
            continue
        found += inside
        passed_over += others
    if len(found) > limits.max_files:
        raise Refused(
            413,
            f"the upload has {len(found):,} pictures, and at most "
            f"{limits.max_files:,} are read at once",
            "send fewer at once, use allcls predict for many, or start the server "
            "with a larger --max_files",
        )
    if not found:
        raise Refused(
            400,
            "the upload has no pictures",
            "send BMP, PNG, JPEG or TIFF files, or zips of them, in the field files",
        )
    return found, passed_over


def is_zip(file: File) -> bool:
    """Tells by the name or the first bytes whether a file is a zip."""
    return files.is_zip(file.name) or file.data.startswith(_ZIP_STARTS)


class _Budget:
    """Bytes that may still be unpacked; threads share it."""

    def __init__(self, most: int):
        self._most = most
        self._left = most
        self._lock = threading.Lock()

    def take(self, count: int, name: str) -> None:
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise InputError(
                    f"{name}: the zips of this upload unpack to more than "
                    f"{in_mib(self._most)}; send fewer pictures at once"
                )


def _members(
    file: File, limits: Limits, unpacked: _Budget
) -> tuple[list[Upload], list[str]]:
    """Returns the pictures of a zip, and the names of its other files.

    Raises:
      InputError: if it cannot be opened.
    """
    # The list of entries is built at once; each entry begins with this mark.
    most = _ENTRIES * limits.max_files
    if file.data.count(_ENTRY_MARK) > most:
        raise InputError(f"the zip has more than {most:,} entries; send fewer at once")
    try:
        archive = zipfile.ZipFile(io.BytesIO(file.data))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise InputError(
            f"the zip cannot be opened ({error}); make it again"
        ) from error
    pictures, others = [], []
    for info in archive.infolist():
        name = f"{file.name}!{shown_name(info.filename.encode('utf-8', 'replace'))}"
        if info.is_dir() or _is_junk(info.filename):
            continue
        if not files.is_image(info.filename):
            others.append(name)
            continue
        pictures.append(Upload(name, _Member(archive, info, name, limits, unpacked)))
    if not pictures:
        raise InputError("the zip has no BMP, PNG, JPEG or TIFF files; add some")
    return pictures, others


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    """Unpacks one picture of a zip when called."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str
    limits: Limits
    unpacked: _Budget

    def __call__(self) -> bytes:
        if self.info.compress_type not in _PACKINGS:
            raise InputError(
                f"{self.name}: is packed in a way that is not read; make the zip with "
                "the usual method, deflate"
            )
        pieces, length = [], 0
        try:
            with self.archive.open(self.info) as member:
                while piece := member.read(_CHUNK):
                    self.unpacked.take(len(piece), self.name)
                    length += len(piece)
                    if length > self.limits.max_upload:
                        raise InputError(
                            f"{self.name}: unpacks to more than "
                            f"{in_mib(self.limits.max_upload)}; leave it out"
                        )
                    pieces.append(piece)
        except InputError:
            raise
        except RuntimeError as error:  # a password
            raise InputError(
                f"{self.name}: cannot be unpacked ({error}); make the zip without a "
                "password"
            ) from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise InputError(
                f"{self.name}: cannot be unpacked ({error}); make the zip again"
            ) from error
        return b"".join(pieces)


def _is_junk(name: str) -> bool:
    """Whether an operating system has put it there rather than a person."""
    parts = name.replace("\\", "/").split("/")
    return any(part != ".." and files.is_junk(part) for part in parts)


def _raise(error: InputError) -> bytes:
    raise error
