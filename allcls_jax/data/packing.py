"""Cells of any reader packed once as a TFDS dataset, and read back by row.

A pack is a folder that is either whole or absent: it is written beside its place and
renamed. It holds the images at one size (`cells/…`, array_record files of the TFDS
builder `cells`), the table of their records (`cells.csv`) and what it was made from
(`pack.json`).
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from allcls_jax import terminal
from allcls_jax.config import DataSource, OnBadImage
from allcls_jax.data import transforms
from allcls_jax.data.cells import (
    COLUMNS,
    CellFile,
    table_from_csv,
    table_from_rows,
)
from allcls_jax.errors import InputError, list_problems

# Progress is shown by `terminal`.
tfds.disable_progress_bar()

# Raise it when stored images would come out differently from the same source.
_FORMAT = 1

# TFDS' only split: ours are drawn later, from the table.
_SPLIT = "cells"


class PackedCells:
    """The cells of a pack, by row of its table; safe to use from several threads.

    Attributes:
      table: one row a cell.
      size: height and width of the stored images, pixels.
      crop: pixels of the centre square that was cut out before resizing, or None.
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
                f"{directory}: not a pack of this version; write it with "
                "tools/prepare_data.py"
            )
        self.size = int(manifest["size"])
        self.crop = manifest["crop"]
        self.stamp = str(manifest["stamp"])
        self.source = DataSource(manifest["source"])
        try:
            text = (directory / "cells.csv").read_text(encoding="utf-8")
            self.table = table_from_csv(text)
            # Now, not at first use: reading threads would race to open them.
            self._records = self._open()
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
        return np.asarray(self._records[row]["image"])

    def __reduce__(self) -> tuple[type["PackedCells"], tuple[Path]]:
        # Readers hold open files: another process opens its own.
        return PackedCells, (self.directory,)

    def _open(self) -> Any:
        """Returns TFDS' records, in the order of the table."""
        folder = self.directory / _Cells.name / str(_Cells.VERSION)
        # Any: TFDS' decorators hide the signatures from type checkers.
        builder: Any = tfds.builder_from_directory(str(folder))
        records = builder.as_data_source(_SPLIT)
        if len(records) != len(self):
            raise ValueError(f"{len(records)} images and {len(self)} records")
        records[len(records) - 1]  # the files are opened at the first use
        return records


def pack(
    cells: Sequence[CellFile],
    out: Path,
    *,
    source: DataSource,
    size: int,
    crop: int | None,
    on_bad_image: OnBadImage,
) -> PackedCells:
    """Writes cells into a pack, or opens it where it holds just these already.

    Args:
      cells: in the order of the rows to be.
      out: the pack's folder; another pack there is replaced.
      source: the kind of reader that they came from.
      size: height and width to store, pixels.
      crop: centre square cut out before resizing, pixels; None keeps the whole.
      on_bad_image: whether images that cannot be read end it or are left out, their
        list being written to `skipped.txt` in the pack.

    Raises:
      InputError: if images cannot be read (all are named), or `out` is a folder that
        holds something else.
    """
    content = stamp(cells, source=source, size=size, crop=crop, on_bad=on_bad_image)
    present = _manifest(out)
    if present is not None and present["stamp"] == content:
        return PackedCells(out)
    if present is None and out.exists() and any(out.iterdir()):
        raise InputError(
            f"{out}: holds something that is no pack; name an empty or a new folder"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        manifest = {
            "format": _FORMAT,
            "stamp": content,
            "source": str(source),
            "size": size,
            "crop": crop,
        }
        _write(cells, beside, size=size, crop=crop, on_bad_image=on_bad_image)
        (beside / "pack.json").write_text(json.dumps(manifest, indent=2) + "\n")
        _replace(out, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return PackedCells(out)


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
    digest = hashlib.sha256(f"{_FORMAT} {source} {size} {crop} {on_bad}".encode())
    for cell in cells:
        try:
            state = cell.source.stamp()
        except OSError as error:
            state = f"unreadable: {error.strerror}"
        record = (
            cell.image_id,
            cell.patient,
            cell.label,
            str(cell.part),
            cell.fold,
            cell.max_side,
            state,
        )
        digest.update(json.dumps(record).encode())
    return digest.hexdigest()


class _Cells(tfds.core.GeneratorBasedBuilder):
    """The TFDS dataset `cells`; needs no TensorFlow."""

    name = "cells"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First form."}  # noqa: RUF012 - TFDS' own attribute

    def __init__(self, *, writer: "_Writer", **kwargs: Any):
        self._writer = writer
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
        size = self._writer.size
        return tfds.core.DatasetInfo(
            builder=self,
            description="Single-cell images, each with its patient.",
            # Keys are rows: without shuffling memory stays flat and the order is ours.
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(size, size, 3), encoding_format="png"
                    ),
                    "image_id": text,
                    "patient": text,
                    "label": number,
                    "part": text,
                    "fold": number,
                    "sha256": text,
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from self._writer.examples()

    # TFDS would speak of downloads on standard output.
    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...


@dataclasses.dataclass
class _Writer:
    """Turns cells into TFDS examples and remembers what became of each."""

    cells: Sequence[CellFile]
    size: int
    crop: int | None
    advance: terminal.Advance
    rows: list[tuple[str | int, ...]] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (row, example) in order, preparing some ahead."""
        threads = os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool:
            for cell, result in _map_ahead(
                pool, self._prepare, self.cells, 8 * threads
            ):
                self.advance(1)
                if isinstance(result, str):
                    self.problems.append(result)
                    continue
                png, digest = result
                record = (
                    cell.image_id,
                    cell.patient,
                    cell.label,
                    str(cell.part),
                    cell.fold,
                    digest,
                )
                example = {"image": png} | dict(zip(COLUMNS, record, strict=True))
                yield len(self.rows), example
                self.rows.append(record)

    def _prepare(self, cell: CellFile) -> tuple[bytes, str] | str:
        """Returns (PNG, sha256 of the file), or what is wrong with the file."""
        try:
            data = cell.source.read()
            image = transforms.prepare(
                data,
                name=cell.source.name,
                max_side=cell.max_side,
                crop=self.crop,
                size=self.size,
            )
        except transforms.BadImage as error:
            return str(error)
        except OSError as error:
            return f"{cell.source.name}: cannot be read ({error})"
        return transforms.encode_png(image), hashlib.sha256(data).hexdigest()


def _map_ahead(
    pool: ThreadPoolExecutor, function: Any, items: Sequence[CellFile], ahead: int
) -> Iterator[tuple[CellFile, Any]]:
    """Yields (item, function(item)) in order, with at most `ahead` under way."""
    pending: deque[tuple[CellFile, Future[Any]]] = deque()
    for item in items:
        pending.append((item, pool.submit(function, item)))
        if len(pending) >= ahead:
            first, future = pending.popleft()
            yield first, future.result()
    while pending:
        first, future = pending.popleft()
        yield first, future.result()


def _write(
    cells: Sequence[CellFile],
    directory: Path,
    *,
    size: int,
    crop: int | None,
    on_bad_image: OnBadImage,
) -> None:
    """Writes images and table; raises `InputError` with all that cannot be read."""
    with terminal.track("packing", len(cells), "images") as advance:
        writer = _Writer(cells, size, crop, advance)
        builder = _Cells(writer=writer, data_dir=str(directory))
        try:
            builder.download_and_prepare()
        except Exception:
            # TFDS fails over no example at all; the cause is ours to tell.
            if not writer.problems or writer.rows:
                raise
    if writer.problems and (on_bad_image is OnBadImage.ERROR or not writer.rows):
        raise list_problems(
            "images that cannot be used",
            writer.problems,
            remedy="Mend or remove them, or leave them out with "
            "--config.data.on_bad_image=skip",
        )
    if writer.problems:
        (directory / "skipped.txt").write_text("\n".join(writer.problems) + "\n")
        terminal.warn(
            f"{len(writer.problems)} images could not be read and are left out; their "
            "list is skipped.txt in the pack"
        )
    table = table_from_rows(writer.rows)
    (directory / "cells.csv").write_text(table.to_csv(), encoding="utf-8")


def _replace(out: Path, beside: Path) -> None:
    """Puts the finished folder in its place, whatever pack was there before."""
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    try:
        if out.exists():
            out.replace(old / "pack")
        beside.replace(out)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _manifest(directory: Path) -> dict[str, Any] | None:
    """Returns `pack.json`, or None where there is no pack of this format."""
    try:
        manifest = json.loads((directory / "pack.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        return None
    return manifest
