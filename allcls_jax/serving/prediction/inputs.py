"""Which pictures the PATHs of a command name: a list on disk, one line a picture.

The list is made and read as a stream: a million pictures take no more memory than ten
thousand, but for a zip's own table of contents, which zipfile holds whole (0.6 kB for
each member). Its order depends on the PATHs and on names alone: PATH by PATH, in each
the pictures by name with numbers in natural order, or as a csv has them. What cannot be
listed is a line with the reason: nothing is passed over.
"""

import array
import csv
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from allcls_jax.data import cnmc, files, transforms
from allcls_jax.data.cells import DiskImage, ImageSource
from allcls_jax.data.threads import ahead_in_threads
from allcls_jax.errors import InputError, list_problems
from allcls_jax.serving.prediction.disk_sort import sorted_lines
from allcls_jax.serving.prediction.patterns import is_pattern, matches

# What decoders read with at most 16 bits for each of four channels.
MAX_BYTES = 8 * transforms.MAX_PIXELS

KINDS = (
    "images (BMP, PNG, JPEG, TIFF), folders, zips, patterns such as 'cells/*.png', or "
    "csv files with the column path (and patient)"
)

# Pictures whose times are asked for together, and by how many threads: a file server
# takes its time for each.
_STAMPS, _THREADS = 64, 8
_SHOWN = 20  # of a csv's wrong rows


# A name with a zero in it, which a csv can hold, is a ValueError of the system's calls.
_UNREADABLE = (OSError, ValueError)


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """One line of the list.

    Attributes:
      name: what the picture is called in results; in a csv its `path`.
      patient: from a csv's `patient`, else from a name of C-NMC 2019; None: unknown.
      path: of its file, or of the zip that holds it.
      member: its name in the zip.
      problem: why there is nothing to read.
    """

    name: str
    patient: str | None = None
    path: str = ""
    member: str | None = None
    problem: str | None = None

    @property
    def source(self) -> ImageSource:
        """Where its bytes lie."""
        if self.member is None:
            return DiskImage(path=self.path)
        return files.ZipImage(self.path, self.member)

    def read(self) -> bytes:
        """Returns the encoded picture.

        Raises:
          InputError: if it cannot be read, with the reason.
        """
        if self.problem is not None:
            raise InputError(self.problem)
        source = self.source
        try:
            length = files.num_bytes(source) or 0
            if length <= MAX_BYTES:
                return source.read()
        except _UNREADABLE as error:
            raise InputError(f"cannot be read ({_reason(error)})") from error
        raise InputError(
            f"has {length:,} bytes, more than a picture of {transforms.MAX_PIXELS:,} "
            "pixels can; cut out the single cells first"
        )


@dataclasses.dataclass(frozen=True)
class PictureList:
    """A list on disk.

    Attributes:
      file: with a line for each picture.
      count: of lines.
      sha256: of the lines and of every picture's size and time of change.
      repeated: how many lines name a picture that an earlier line names.
      block_size: pictures of a block, the last one excepted.
      offsets: where in the file each block begins.
    """

    file: Path
    count: int
    sha256: str
    repeated: int
    block_size: int
    offsets: array.array  # of int64; 8 bytes for a block are all that is kept

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.offsets)

    def size(self, number: int) -> int:
        """Returns how many pictures a block has."""
        return min(self.block_size, self.count - number * self.block_size)

    def block(self, number: int) -> list[Picture]:
        """Returns the pictures of a block, from 0."""
        return read_block(self.file, self.offsets[number], self.block_size)


def read_block(file: Path, offset: int, number: int) -> list[Picture]:
    """Returns at most `number` pictures of a list's file from a line's offset on."""
    with file.open("rb") as lines:
        lines.seek(offset)
        return [Picture(**json.loads(line)) for line in itertools.islice(lines, number)]


def write_list(paths: Sequence[str], file: Path, *, block_size: int) -> PictureList:
    """Lists the pictures that the PATHs name.

    Args:
      paths: as the user gave them; relative ones stay so.
      file: to write; other files are kept beside it meanwhile.
      block_size: how many pictures are read at once.

    Raises:
      InputError: if a PATH does not exist or is of no kind that is read, if a csv is
        wrong, or if there are no pictures.
      OSError: if the list cannot be written.
    """
    folder = file.parent
    expanded = _expanded(paths)
    digest = hashlib.sha256()
    offsets = array.array("q")
    count = position = 0
    pictures = itertools.chain.from_iterable(
        _pictures(path, folder, single=single) for path, single in expanded
    )
    with file.open("wb") as lines:
        with ahead_in_threads(_stamped, _some(pictures), ahead=_THREADS) as stamped:
            for picture, stamp in itertools.chain.from_iterable(stamped):
                line = _line(picture).encode()
                digest.update(line)
                digest.update(f"{stamp}\n".encode("utf-8", "backslashreplace"))
                if count % block_size == 0:
                    offsets.append(position)
                lines.write(line)
                count += 1
                position += len(line)
        if not count:
            raise InputError(
                f"{' '.join(paths)}: no images; looked for {KINDS}; files and folders "
                "whose names begin with a dot are passed over"
            )
    several = len(expanded) > 1 or any(_is_csv(path) for path, _ in expanded)
    return PictureList(
        file=file,
        count=count,
        sha256=digest.hexdigest(),
        repeated=_count_repeated(file) if several else 0,
        block_size=block_size,
        offsets=offsets,
    )


def patient_in(name: str) -> str | None:
    """Returns the patient that a file's own name tells, if it is one of C-NMC 2019."""
    file = re.split(r"[/\\!]", name)[-1]
    return cnmc.patient_of(file.rpartition(".")[0])


def _expanded(paths: Sequence[str]) -> list[tuple[str, bool]]:
    """Returns each PATH, and whether it is one thing rather than a pattern.

    Raises:
      InputError: naming every PATH that cannot be read.
    """
    found: list[tuple[str, bool]] = []
    problems = []
    for given in paths:
        path = str(Path(given).expanduser()) if given.startswith("~") else given
        if not os.path.lexists(path) and is_pattern(path):
            if _is_csv(path):
                tables = sorted(matches(path), key=files.natural)
                found += [(table, True) for table in tables]
                any_there = bool(tables)
            else:
                found.append((path, False))
                any_there = next(iter(matches(path)), None) is not None
            if not any_there:
                problems.append(f"{given}: nothing matches it")
        elif not os.path.lexists(path):
            problems.append(f"{given}: does not exist")
        elif Path(path).is_dir() or _is_readable_kind(path):
            found.append((path, True))
        else:
            problems.append(f"{given}: is none of what is read")
    if problems:
        raise list_problems("PATH", problems, remedy=f"Give {KINDS}.")
    return found


def _is_readable_kind(path: str) -> bool:
    return files.is_image(path) or files.is_zip(path) or _is_csv(path)


def _is_csv(path: str) -> bool:
    return path.lower().endswith(".csv")


def _pictures(path: str, folder: Path, *, single: bool) -> Iterator[Picture]:
    """Yields the pictures of one PATH in order."""
    if single and _is_csv(path) and not Path(path).is_dir():
        yield from _of_table(path)
        return
    if single:
        found = _below(path)
    else:
        found = itertools.chain.from_iterable(map(_below, matches(path)))
    lines = sorted_lines(map(_line, found), folder, key=_order)
    for line, _ in itertools.groupby(lines):  # a pattern may match a file twice
        yield Picture(**json.loads(line))


def _below(path: str) -> Iterator[Picture]:
    """Yields what a path is, or what lies below it, in no order."""
    for found in files.walk(path, ordered=False):
        if isinstance(found, files.Unlisted):
            yield Picture(_shown(found.name), problem=found.reason)
        elif files.is_image(found.file):
            yield _picture(found.source)


def _picture(source: ImageSource) -> Picture:
    name = _shown(source.name)
    patient = patient_in(name)
    if isinstance(source, files.ZipImage):
        return Picture(name, patient, source.path, source.member)
    assert isinstance(source, DiskImage)
    return Picture(name, patient, source.path)


def _of_table(path: str) -> Iterator[Picture]:
    """Yields the pictures that a csv names, in its order.

    Raises:
      InputError: listing what is wrong with it.
    """
    problems: list[str] = []
    number = 0
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = [name.strip().lower() for name in next(rows, [])]
            if "path" not in header:
                found = ", ".join(header) or "(none)"
                problems.append(f"has the columns {found} and needs path")
                rows = iter(())
            for line, row in enumerate(rows, 2):
                if not row:
                    continue
                record = dict(zip(header, map(str.strip, row), strict=False))
                if len(row) != len(header) or not record["path"]:
                    number += 1
                    if number <= _SHOWN:
                        problems.append(
                            f"row {line}: {len(row)} cells under {len(header)} headings"
                            if len(row) != len(header)
                            else f"row {line}: the path is empty"
                        )
                    continue
                yield _picture_of_row(record, Path(path).parent)
    except (UnicodeDecodeError, csv.Error) as error:
        problems.append(f"cannot be read as a csv in UTF-8 ({error})")
    if number > _SHOWN:
        problems.append(f"… and {number - _SHOWN:,} more rows")
    if problems:
        raise list_problems(
            path,
            problems,
            remedy="Expected a csv with the column path, relative to the csv or "
            "absolute, and, if patients are known, the column patient.",
        )


def _picture_of_row(record: dict[str, str], folder: Path) -> Picture:
    name = record["path"]
    # Both separators occur in tables written on Windows.
    path = str(folder / name.replace("\\", "/"))
    return Picture(name, record.get("patient") or patient_in(name), path)


def _line(picture: Picture) -> str:
    """A line of JSON; the same picture always gives the same line."""
    # Not `asdict`, which copies every value and would take a third of the whole time.
    values = ((name, getattr(picture, name)) for name in Picture.__slots__)
    return (
        json.dumps({name: value for name, value in values if value is not None}) + "\n"
    )


def _order(line: str) -> tuple[Any, ...]:
    name = json.loads(line)["name"]
    return files.natural(name), name


def _some(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    """Yields the pictures a few at a time."""
    while some := list(itertools.islice(pictures, _STAMPS)):
        yield some


def _stamped(pictures: Sequence[Picture]) -> list[tuple[Picture, str]]:
    """Returns with each picture what changes when it changes."""
    return [(picture, _stamp(picture)) for picture in pictures]


def _stamp(picture: Picture) -> str:
    if picture.problem is not None:
        return ""
    try:
        return picture.source.stamp()
    except _UNREADABLE as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without its name."""
    strerror = getattr(error, "strerror", None)
    return strerror or str(error).rpartition(": ")[2]


def _shown(name: str) -> str:
    """A name of the file system with what is not UTF-8 made visible."""
    return name.encode("utf-8", "backslashreplace").decode()


def _count_repeated(file: Path) -> int:
    """Returns how many lines name a picture that another one has named."""
    with file.open(encoding="utf-8") as lines:
        places = sorted_lines(map(_place, lines), file.parent, key=str)
        return sum(sum(1 for _ in group) - 1 for _, group in itertools.groupby(places))


def _place(line: str) -> str:
    picture = Picture(**json.loads(line))
    path = os.path.abspath(picture.path) if picture.path else picture.name  # noqa: PTH100
    return json.dumps([path, picture.member]) + "\n"
