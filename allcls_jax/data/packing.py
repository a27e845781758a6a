"""Cells of any reader packed once as a TFDS dataset, and read back by row.

A pack is a folder that is either whole or absent: it is written beside its place and
renamed. It holds the images at one size (`cells/…`, written by `data/records.py`), the
table of their records (`cells.csv`), what it was made from (`pack.json`), and where
images were left out, which and why (`skipped.txt`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import terminal
from allcls_jax.config import DataSource, OnBadImage
from allcls_jax.data import placing, records, transforms
from allcls_jax.data.cells import COLUMNS, CellFile, read_table, table_writer
from allcls_jax.data.encoding import encode, encode_all
from allcls_jax.errors import InputError, list_problems

# Raise it when a pack of the same source would come out differently.
FORMAT = 3

SKIPPED_FILE = "skipped.txt"
_TABLE_FILE = "cells.csv"


class PackedCells:
    """The cells of a pack, by row of its table; safe to use from several threads.

    Attributes:
      table: one row a cell.
      size: height and width of the stored images, pixels.
      crop: pixels of the centre square that was cut out before resizing, or None.
      skipped: what is wrong with each image that was left out.
      stamp: a sha256 that changes with any image, record or setting.
      source: the kind of reader that the cells came from.
      directory: the pack.
    """

    def __init__(self, directory: Path):
        """Opens a pack.

        Raises:
          InputError: if the folder is no pack or is damaged.
        """
        self.directory = directory
        manifest = _manifest(directory)
        if manifest is None:
            raise InputError(
                f"{directory}: not a pack of this version; write it with allcls prepare"
            )
        try:
            self.size = int(manifest["size"])
            self.crop = manifest["crop"]
            self.source = DataSource(manifest["source"])
            table = _sha256(directory / _TABLE_FILE)
            if table != manifest["table"]:
                raise ValueError(f"{_TABLE_FILE} is not what was written")
            self.table = read_table(directory / _TABLE_FILE)
            # The table tells which images could be read when they were packed.
            content = f"{manifest['stamp']} {table}"
            self.stamp = hashlib.sha256(content.encode()).hexdigest()
            self.skipped = _skipped(directory)
            # Now, not at first use: reading threads would race to open them.
            self._records = records.Records(directory)
            if len(self._records) != len(self):
                raise ValueError(f"{len(self._records)} images, {len(self)} records")
        except Exception as error:  # TFDS and array_record have no common type
            raise InputError(
                f"{directory}: the pack is damaged ({error}); remove this folder and "
                "pack the cells again"
            ) from error

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns the image of a row: (size, size, 3) uint8, RGB."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return transforms.decode_png(self._records.image(row))

    def __reduce__(self) -> tuple[Any, tuple[Path, str]]:
        # Readers hold open files: another process opens its own.
        return _opened_again, (self.directory, self.stamp)


def pack(
    cells: Sequence[CellFile],
    out: Path,
    *,
    source: DataSource,
    size: int,
    crop: int | None,
    on_bad_image: OnBadImage,
    replace: bool = False,
) -> PackedCells:
    """Writes cells into a pack, or opens it where it holds just these already.

    One process at a time writes a pack; another one waits and opens what it wrote. A
    pack without images that could not be read is used as long as none of them can.

    Args:
      cells: in the order of the rows to be.
      out: the pack's folder; another pack there is replaced.
      source: the kind of reader that they came from.
      size: height and width to store, pixels.
      crop: centre square cut out before resizing, pixels; None keeps the whole.
      on_bad_image: whether images that cannot be read end it or are left out, their
        list being written to `skipped.txt` in the pack.
      replace: whether `out` is ours, so that a damaged pack, or something else, gives
        way.

    Raises:
      InputError: if images cannot be read (all are named), if `out` cannot be written,
        or, without `replace`, is damaged or holds something else.
    """
    out = out.resolve()
    content = stamp(cells, source=source, size=size, crop=crop, on_bad=on_bad_image)

    def present() -> PackedCells | None:
        packed = _present(out, content, replace=replace)
        if packed is None or len(packed) == len(cells):
            return packed
        known = set(packed.table.image_id.tolist())
        left_out = [cell for cell in cells if cell.image_id not in known]
        mended = any(
            not isinstance(encode(cell, size=size, crop=crop), str) for cell in left_out
        )
        return None if mended else packed

    try:
        if (packed := present()) is not None:
            return packed
        with placing.exclusively(out) as replacing:
            # Another process may have been faster.
            if (packed := present()) is not None:
                return packed
            with replacing() as folder:
                manifest = {
                    "format": FORMAT,
                    "stamp": content,
                    "source": str(source),
                    "size": size,
                    "crop": crop,
                    "table": _write(
                        cells, folder, size=size, crop=crop, on_bad_image=on_bad_image
                    ),
                }
                text = json.dumps(manifest, indent=2) + "\n"
                (folder / "pack.json").write_text(text, encoding="utf-8")
            return PackedCells(out)
    except OSError as error:
        raise InputError(
            f"{out}: the pack cannot be written ({error}); make room or give "
            "permission, or choose another folder with --out (for a run: "
            "--config.cache_dir)"
        ) from error


def is_pack(directory: Path) -> bool:
    """Returns whether a folder is a pack of this version."""
    return _manifest(directory) is not None


def stamp(
    cells: Sequence[CellFile],
    *,
    source: DataSource,
    size: int,
    crop: int | None,
    on_bad: OnBadImage,
) -> str:
    """Returns a sha256 that changes with any file, record or setting."""
    digest = hashlib.sha256(f"{FORMAT} {source} {size} {crop} {on_bad}".encode())
    for cell in cells:
        try:
            state = cell.source.stamp()
        except OSError as error:
            state = f"unreadable: {error.strerror}"
        record = (*cell.record(), cell.max_side, state)
        digest.update(json.dumps(record).encode())
    return digest.hexdigest()


def _write(
    cells: Sequence[CellFile],
    directory: Path,
    *,
    size: int,
    crop: int | None,
    on_bad_image: OnBadImage,
) -> str:
    """Writes images and table, and returns the sha256 of the table's file.

    Raises:
      InputError: naming all images that cannot be read.
      OSError: if the folder cannot be written.
    """
    problems: list[str] = []
    number = 0

    def examples(
        advance: terminal.Advance, write_row: Callable[[Sequence[str | int]], object]
    ) -> Iterator[records.Example]:
        nonlocal number
        for cell, result in encode_all(cells, size=size, crop=crop):
            advance(1)
            if isinstance(result, str):
                problems.append(result)
                continue
            png, *found = result
            record = (*cell.record(), *found)
            yield {"image": png} | dict(zip(COLUMNS, record, strict=True))
            write_row(record)
            number += 1

    table = directory / _TABLE_FILE
    with (
        table.open("w", encoding="utf-8", newline="") as file,
        terminal.track("packing", len(cells), "images") as advance,
    ):
        given = examples(advance, table_writer(file))
        try:
            records.write(directory, given, size=size)
        except Exception as error:
            # array_record's form of an OSError, such as `write() failed: …`.
            if isinstance(error, RuntimeError) and "() failed: " in str(error):
                raise OSError(str(error)) from error
            # TFDS fails over no example at all; the cause is ours to tell.
            if not problems or number:
                raise
    if problems and (on_bad_image is OnBadImage.ERROR or not number):
        raise list_problems(
            "images that cannot be used",
            problems,
            remedy="Mend or remove them, or leave them out with "
            "--config.data.on_bad_image=skip",
        )
    if problems:
        lines = [" ".join(problem.splitlines()) for problem in problems]
        text = "\n".join(lines) + "\n"
        (directory / SKIPPED_FILE).write_text(text, "utf-8", "backslashreplace")
    return _sha256(table)


def _present(out: Path, content: str, *, replace: bool) -> PackedCells | None:
    """Returns the pack of this stamp, or None where one may be written."""
    manifest = _manifest(out)
    if manifest is None:
        empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
        if not empty and not replace:
            raise InputError(
                f"{out}: holds something that is no pack; name an empty or a new folder"
            )
        return None
    if manifest.get("stamp") != content:
        return None
    try:
        return PackedCells(out)
    except InputError:
        if not replace:
            raise
        return None


def _opened_again(directory: Path, stamp: str) -> PackedCells:
    """Returns a pack as it was when another process opened it."""
    packed = PackedCells(directory)
    if packed.stamp != stamp:
        raise InputError(
            f"{directory}: was packed anew while it was in use; start this run again"
        )
    return packed


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _skipped(directory: Path) -> tuple[str, ...]:
    try:
        text = (directory / SKIPPED_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    return tuple(text.splitlines())


def _manifest(directory: Path) -> dict[str, Any] | None:
    """Returns `pack.json`, or None where there is no pack of this format."""
    try:
        manifest = json.loads((directory / "pack.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    return manifest
