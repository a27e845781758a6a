"""The most confidently wrong cells as pictures, from the packed cells of the run.

A picture is shown only if it is the one that the run has tested: same id, same sha256.
"""

import base64
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import config_files
from allcls_jax.config import DataSource
from allcls_jax.data import prepare
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.transforms import encode_png
from allcls_jax.errors import InputError
from allcls_jax.evaluation.report.numbers import CLASSES, count, number
from allcls_jax.evaluation.report.parts import Table, Text
from allcls_jax.evaluation.report.record import Folder, Missing, attempt, in_one_line
from allcls_jax.paths import default_cache_dir

_NONE = "No test image was called wrongly."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of the page.

    Attributes:
      png: base64.
      side: height and width, pixels.
      image_id: of the data set.
      patient: likewise.
      truth: "ALL" or "HEM".
      probability: of ALL, as text.
    """

    png: str
    side: int
    image_id: str
    patient: str
    truth: str
    probability: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Pictures of cells, and what was left out."""

    rows: list[Cell]
    notes: list[str]
    kind: str = "cells"


def mistakes(folder: Folder) -> Table | Text:
    """Returns the table of the most confidently wrong test images."""
    rows = _mistakes(folder)
    if not rows:
        return Text(text=_NONE)
    return Table(
        caption="The most confidently wrong test images",
        header=("Image", "Patient", "Is", "Probability of ALL"),
        rows=[
            [
                str(row["image_id"]),
                str(row["patient"]),
                CLASSES.get(row["label"], "–"),
                number(row["probability"]),
            ]
            for row in rows
        ],
        text=frozenset({1, 2}),
    )


def pictures(folder: Folder, *, data: Path | None, cache: Path | None) -> Cells | Text:
    """Returns the most confidently wrong test images as pictures.

    Args:
      folder: of the run.
      data: where its cells are now; None: where the run found them.
      cache: where packed cells are kept; None: where the run kept them.

    Raises:
      Missing: if the cells cannot be opened, or are others.
    """
    wanted = _mistakes(folder)
    if not wanted:
        return Text(text=_NONE)
    cells = _open(folder, data=data, cache=cache)
    row_of = {name: row for row, name in enumerate(cells.table.image_id.tolist())}
    sha256, unknown = attempt(lambda: _hashes(folder))
    found, left_out = [], 0
    for mistake in wanted:
        name = str(mistake["image_id"])
        row = row_of.get(name)
        if row is None or (
            not unknown and sha256.get(name) != str(cells.table.sha256[row])
        ):
            left_out += 1
            continue
        found.append(_cell(mistake, np.asarray(cells[row])))
    if not found:
        raise Missing(
            f"the cells in {_place(data, folder)} are not those that were tested; give "
            "their folder with --data"
        )
    notes = []
    if left_out:
        notes.append(
            f"{count(left_out)} of {count(len(wanted))} pictures are left out: the "
            "data holds no such image, or another one of that name."
        )
    if unknown:
        notes.append("Without partition.csv the images are told by their names only.")
    return Cells(rows=found, notes=notes)


def _mistakes(folder: Folder) -> list[dict[str, Any]]:
    rows = folder.evaluation().get("mistakes")
    if rows is None:
        raise Missing("evaluation.json holds no mistakes")
    return rows


def _cell(mistake: Mapping[str, Any], image: np.ndarray) -> Cell:
    return Cell(
        png=base64.b64encode(encode_png(image, level=9)).decode(),
        side=image.shape[0],
        image_id=str(mistake["image_id"]),
        patient=str(mistake["patient"]),
        truth=CLASSES.get(mistake["label"], "–"),
        probability=number(mistake["probability"]),
    )


def _hashes(folder: Folder) -> dict[str, str]:
    return {row["image_id"]: row["sha256"] for row in folder.partition()}


def _open(folder: Folder, *, data: Path | None, cache: Path | None) -> PackedCells:
    folder.config()  # raises Missing where there is none
    try:
        config = config_files.read_run(folder.path / "config.json")
        if data is not None:
            config.data.dir = str(data)
            if config.data.source is DataSource.SYNTHETIC:
                config.data.source = None
        given = cache or config.cache_dir
        return prepare.open_cells(
            config.data,
            pack_size=config.pack_size,
            cache_dir=Path(given).expanduser() if given else default_cache_dir(),
        )
    except (InputError, OSError) as error:
        raise Missing(
            f"{in_one_line(error)}; give the folder of the cells with --data"
        ) from error


def _place(data: Path | None, folder: Folder) -> str:
    if data is not None:
        return f"--data={data}"
    return str((folder.config().get("data") or {}).get("dir") or "the drawing")
