"""What lies under a path, on disk and in zips: pictures and tables, not decoded.

A zip counts as a folder of its own name, so that readers see one tree; it is read in
place and never unpacked. What operating systems leave behind is not there at all.
"""

import contextlib
import dataclasses
import functools
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from allcls_jax.atomic import write_atomically
from allcls_jax.data.cells import CellFile, DiskImage, ImageSource, Part
from allcls_jax.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff")

# Pictures that would otherwise be passed over without a word.
_OTHER_PICTURES = (
    *(".gif", ".webp", ".jp2", ".heic", ".avif"),
    *(".dcm", ".svs", ".ndpi", ".npy", ".npz"),
)
# Besides every name that begins with a dot (.DS_Store, ._x.bmp, .ipynb_checkpoints).
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})


@dataclasses.dataclass(frozen=True, slots=True)
class ZipImage:
    """A picture inside a zip, which stays packed."""

    path: str  # of the zip
    member: str  # its name inside

    @property
    def name(self) -> str:
        """The zip's path and the name inside it."""
        return f"{self.path}!{self.member}"

    def read(self) -> bytes:
        """Returns the unpacked bytes. Raises OSError if that is impossible."""
        with _as_os_error(self.name):
            return _opened_zip(self.path).read(self.member)

    def stamp(self) -> str:
        """Returns the zip's path, the name inside, size and checksum."""
        with _as_os_error(self.name):
            info = _opened_zip(self.path).getinfo(self.member)
        return f"{self.name}|{info.file_size}|{info.CRC:08x}"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """One file below the path that was searched."""

    folders: tuple[str, ...]  # between that path and the file
    file: str  # its own name
    source: ImageSource

    @property
    def path(self) -> str:
        """The path below the one searched, with forward slashes."""
        return "/".join((*self.folders, self.file))

    @property
    def stem(self) -> str:
        """The file's name without its last suffix."""
        return self.file.rpartition(".")[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Unlisted:
    """What lies below the path that was searched and cannot be looked into or read."""

    name: str  # its path
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(slots=True)
class Listing:
    """The pictures and csv files under one path."""

    root: Path
    above: tuple[str, ...]  # names of the searched folder's parent and of itself
    images: list[Found] = dataclasses.field(default_factory=list)
    tables: list[Found] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def list_files(path: Path) -> Listing:
    """Returns everything readable below a folder or zip, zips inside it included.

    What cannot be listed (a folder without permission, a broken zip) becomes one of the
    listing's `problems`.

    Raises:
      InputError: if the path does not exist or is neither a folder nor a zip.
    """
    root = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 (keeps symlinks)
    if not root.is_dir() and not (root.is_file() and is_zip(root.name)):
        what = "is no folder and no zip" if root.exists() else "does not exist"
        raise InputError(
            f"{root}: {what}; give the folder or zip that holds the cell images"
        )
    name = root.name if root.is_dir() else root.stem
    listing = Listing(root, (root.parent.name, name))
    for found in walk(str(root)):
        if isinstance(found, Unlisted):
            listing.problems.append(str(found))
        elif is_image(found.file):
            listing.images.append(found)
        else:
            listing.tables.append(found)
    return listing


def walk(path: str, *, ordered: bool = True) -> Iterator[Found | Unlisted]:
    """Yields the pictures and csv files below a path, one at a time.

    Args:
      path: of a folder, a zip or a file; every path that is yielded begins with it.
      ordered: whether a folder's files come by their names, for which all of them are
        held at once; otherwise they come as the system lists them.
    """
    if Path(path).is_dir():
        yield from _walk_folder(path, (), ordered)
    elif is_zip(path):
        yield from _walk_zip(path, ())
    else:
        file = Path(path).name
        yield from _sorted_out(Found((), file, DiskImage(path=path)))


def write(path: Path, content: bytes) -> None:
    """Writes a file that is never half there; InputError if that is impossible."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); make room, or name another "
            "folder"
        ) from error


def read_text(source: ImageSource) -> str:
    """Returns the text of a csv, with or without a byte order mark.

    Raises:
      OSError: if it cannot be read.
      UnicodeDecodeError: if it is not UTF-8.
    """
    return source.read().decode("utf-8-sig")


def is_image(file: str) -> bool:
    """Tells by the suffix, in any case, whether a file is a picture we read."""
    return _suffix(file) in IMAGE_SUFFIXES


def is_zip(file: str) -> bool:
    """Tells by the suffix, in any case, whether a file is a zip."""
    return _suffix(file) == ".zip"


def is_junk(name: str) -> bool:
    """Tells whether a file or folder is what operating systems leave behind."""
    return name.startswith(".") or name.lower() in _JUNK


def num_bytes(source: ImageSource) -> int | None:
    """Returns how many bytes `read` would give, None where it is not known before.

    Raises:
      OSError: if that cannot be told.
    """
    if isinstance(source, ZipImage):
        with _as_os_error(source.name):
            return _opened_zip(source.path).getinfo(source.member).file_size
    return Path(source.path).stat().st_size if isinstance(source, DiskImage) else None


def in_order(cells: Iterable[CellFile]) -> list[CellFile]:
    """Returns the cells by part, then image id with its numbers in natural order."""
    parts = {part: rank for rank, part in enumerate(Part)}
    return sorted(cells, key=lambda c: (parts[c.part], natural(c.image_id), c.image_id))


def natural(text: str) -> tuple[str | int, ...]:
    """A sort key under which 10 follows 9; text and numbers take turns in it."""
    pieces = re.split(r"(\d+)", text)
    return tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces))


def without_copies(cells: Sequence[CellFile]) -> tuple[list[CellFile], list[str]]:
    """Returns the cells of different image ids, and a line for each id held twice.

    A zip left lying beside what was unpacked from it is no problem: if all its images
    are also on disk, it is passed over. Ids that differ in case only are held twice.
    """
    unpacked = {c.image_id.casefold() for c in cells if not _archive(c)}
    needed = {_archive(c) for c in cells if c.image_id.casefold() not in unpacked}
    kept: dict[str, CellFile] = {}
    problems = []
    for cell in cells:
        archive = _archive(cell)
        if archive and archive not in needed:
            continue
        first = kept.setdefault(cell.image_id.casefold(), cell)
        if first is not cell:
            problems.append(
                f"{cell.image_id} lies in {first.source.name} and {cell.source.name}"
            )
    return list(kept.values()), problems


def _walk_folder(
    folder: str, folders: tuple[str, ...], ordered: bool
) -> Iterator[Found | Unlisted]:
    """Yields what lies in a folder and below it."""
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda e: e.name) if ordered else listed
            for entry in entries:
                if not is_junk(entry.name):
                    yield from _walk_entry(entry, folders, ordered)
    except OSError as error:
        yield Unlisted(folder, f"cannot be listed ({error.strerror})")


def _walk_entry(
    entry: os.DirEntry[str], folders: tuple[str, ...], ordered: bool
) -> Iterator[Found | Unlisted]:
    """Yields what one entry of a folder is, or what lies in and below it."""
    if entry.is_dir():
        if entry.is_symlink() and _leads_up(entry.path):
            yield Unlisted(entry.path, "a link to a folder above it")
        else:
            yield from _walk_folder(entry.path, (*folders, entry.name), ordered)
    elif is_zip(entry.name):
        yield from _walk_zip(entry.path, (*folders, entry.name[: -len(".zip")]))
    else:
        yield from _sorted_out(Found(folders, entry.name, DiskImage(path=entry.path)))


def _walk_zip(path: str, folders: tuple[str, ...]) -> Iterator[Found | Unlisted]:
    """Yields what lies in a zip."""
    try:
        with _as_os_error(path):
            members = _opened_zip(path).infolist()
    except OSError as error:
        yield Unlisted(path, f"cannot be read as a zip ({error})")
        return
    if any(member.flag_bits & 1 for member in members):
        yield Unlisted(path, "needs a password")
        return
    for member in members:
        # Some programs on Windows write backslashes.
        *inner, file = member.filename.replace("\\", "/").split("/")
        if not file or any(is_junk(name) for name in (*inner, file)):
            continue
        found = Found((*folders, *inner), file, ZipImage(path, member.filename))
        if is_zip(file):
            yield Unlisted(found.source.name, "a zip inside a zip")
        else:
            yield from _sorted_out(found)


def _sorted_out(found: Found) -> Iterator[Found | Unlisted]:
    """Yields a picture or table, a picture that is not read as such, and no other."""
    suffix = _suffix(found.file)
    if suffix in (*IMAGE_SUFFIXES, ".csv"):
        yield found
    elif suffix in _OTHER_PICTURES:
        reason = f"{suffix} is not read; convert it to PNG"
        yield Unlisted(found.source.name, reason)


def _suffix(name: str) -> str:
    """The last suffix in lower case; several times faster than pathlib's."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _leads_up(path: str) -> bool:
    """Whether a linked folder is the one it lies in, or above it."""
    target = Path(path).resolve()
    return Path(path).parent.resolve().is_relative_to(target)


def _archive(cell: CellFile) -> str:
    """The zip that holds a cell, or nothing."""
    return cell.source.path if isinstance(cell.source, ZipImage) else ""


@contextlib.contextmanager
def _as_os_error(name: str) -> Iterator[None]:
    """Turns whatever a damaged or foreign zip raises into an OSError."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise OSError(f"{name}: {error}") from error


def _opened_zip(path: str) -> zipfile.ZipFile:
    """Returns the open zip: reading its table again for every image would be slow."""
    status = Path(path).stat()
    # A forked process would share, and disturb, its parent's position in the file.
    return _open_zip(path, status.st_size, status.st_mtime_ns, os.getpid())


@functools.lru_cache(maxsize=16)
def _open_zip(path: str, *_: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
