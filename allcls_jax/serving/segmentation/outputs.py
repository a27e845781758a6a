"""What is left of segmented fields: COCO JSON, crops, overlays and one table.

Each file is written beside its place and renamed. A field's JSON comes last: where it
is, all of that field is there.
"""

import csv
import dataclasses
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, __version__
from allcls_jax.data import transforms
from allcls_jax.errors import InputError
from allcls_jax.serving.model import Prediction
from allcls_jax.serving.segmentation import overlay as segment_overlay
from allcls_jax.serving.segmentation.nuclei import CAVEAT, Segmentation
from allcls_jax.training.writers import write_atomically, write_json

TABLE_FILE, RECORD_FILE = "cells.csv", "segment.json"

COLUMNS = (
    *("field", "cell", "left", "top", "width", "height", "area", "scale"),
    *("probability", "decision", "uncertainty", "abstain", "warnings", "crop"),
    "error",
)

# The categories of COCO, numbered from 1: with a model, and without one.
DECISIONS, UNNAMED = ("ALL", "HEM", "uncertain"), ("nucleus",)


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FieldResult:
    """One field and what was found in it.

    Attributes:
      name: of the field's file.
      stem: begins the names of its outputs; unique in the folder.
      segmentation: None if the file could not be read.
      scale: field pixels per training pixel; None where there is none to tell.
      scale_words: where the scale comes from, a sentence.
      predictions: of each nucleus in order; None without a model.
      error: why the file could not be read.
    """

    name: str
    stem: str
    segmentation: Segmentation | None = None
    scale: float | None = None
    scale_words: str = ""
    predictions: tuple[Prediction, ...] | None = None
    error: str | None = None

    def kinds(self) -> list[str]:
        """Returns each nucleus's category."""
        if self.segmentation is None:
            return []
        if self.predictions is None:
            return ["nucleus"] * len(self.segmentation.nuclei)
        return [
            "uncertain" if said.abstain else str(said.decision)
            for said in self.predictions
        ]

    def crop_file(self, number: int) -> str:
        """Returns where the crop of a cell lies, from 1, below the folder."""
        return f"{self.stem}/{number:04d}.png"


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Refuses a folder in which something would be replaced.

    Raises:
      InputError: if it is a file, or not empty without `overwrite`.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out={out}: is a file; give a folder")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"--out={out}: is not empty; give another folder, or --overwrite to "
            "replace the files of the same names in it"
        )


def unique_stems(names: Iterable[str]) -> list[str]:
    """Returns what each field's outputs are called, alike on every file system."""
    taken: set[str] = set()
    stems = []
    for name in names:
        stem = os.path.splitext(_file_of(name))[0]  # noqa: PTH122
        plain = re.sub(r"[^\w.-]+", "_", stem)
        first = stem = plain.strip(".")[:100] or "field"
        number = 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{first}-{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def write_field(
    out: Path,
    result: FieldResult,
    image: np.ndarray,
    crops: Sequence[np.ndarray],
    *,
    notes: Sequence[str],
    model: dict[str, Any] | None,
) -> None:
    """Writes the crops, the overlay and the JSON of a field that was read.

    Args:
      out: the folder.
      result: what was found.
      image: (height, width, 3) uint8 RGB, the field.
      crops: (side, side, 3) uint8 RGB of each cell; none without a scale.
      notes: what must be known of the model.
      model: what is told of it in the JSON.
    """
    assert result.segmentation is not None
    out.mkdir(parents=True, exist_ok=True)
    folder = out / result.stem
    if crops:
        folder.mkdir(exist_ok=True)
    for number, crop in enumerate(crops, 1):
        _write_bytes(out / result.crop_file(number), transforms.encode_png(crop, 6))
    if folder.is_dir():  # of an earlier time, when more cells were found
        for file in folder.iterdir():
            if re.fullmatch(r"\d{4,}\.png", file.name) and int(file.stem) > len(crops):
                file.unlink()
    _write_bytes(out / f"{result.stem}.overlay.png", overlay(result, image, notes))
    write_json(out / f"{result.stem}.coco.json", coco(result, notes=notes, model=model))


def overlay(result: FieldResult, image: np.ndarray, notes: Sequence[str]) -> bytes:
    """Returns the field with its cells drawn over, as PNG."""
    segmentation = result.segmentation
    assert segmentation is not None
    kinds = result.kinds()
    counts = Counter(kinds)
    words = {
        "ALL": "called ALL",
        "HEM": "called HEM",
        "uncertain": "uncertain: the model abstains",
        "nucleus": "nucleus, not classified",
    }
    categories = UNNAMED if result.predictions is None else DECISIONS
    outlines = [
        segment_overlay.Outline(nucleus.outline(), number, kind)
        for number, (nucleus, kind) in enumerate(
            zip(segmentation.nuclei, kinds, strict=True), 1
        )
    ]
    total = len(kinds)
    return segment_overlay.draw(
        image,
        outlines,
        title=f"{_file_of(result.name)}: {total} {'cell' if total == 1 else 'cells'}",
        legend={kind: f"{words[kind]} ({counts[kind]})" for kind in categories},
        lines=[
            _left_out_words(segmentation),
            *segmentation.notes,
            result.scale_words,
            *([f"Model: {'; '.join(notes)}."] if notes else []),
            CAVEAT,
        ],
        warning=DISCLAIMER,
    )


def coco(
    result: FieldResult, *, notes: Sequence[str], model: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns a field's cells in the format of COCO's object detection.

    `score` is the calibrated probability of the class called, `probability` that of
    ALL; boxes are left, top, width and height, polygons x and y in turn, in pixels.
    """
    segmentation = result.segmentation
    assert segmentation is not None
    height, width = segmentation.shape
    categories = UNNAMED if result.predictions is None else DECISIONS
    annotations = []
    for i, (nucleus, kind) in enumerate(
        zip(segmentation.nuclei, result.kinds(), strict=True)
    ):
        annotation: dict[str, Any] = {
            "id": i + 1,
            "image_id": 1,
            "category_id": 1 + categories.index(kind),
            "bbox": list(nucleus.bbox),
            "area": nucleus.area,
            "segmentation": [nucleus.outline()[:-1].round(2).ravel().tolist()],
            "iscrowd": 0,
        }
        if result.predictions is not None:
            annotation |= _said(result.predictions[i])
        annotations.append(annotation)
    return {
        "info": {
            "description": "Cells found in a microscope field by allcls segment",
            "version": __version__,
            "disclaimer": DISCLAIMER,
            "caveat": CAVEAT,
            "model": model,
            "notes": [*notes, *segmentation.notes],
            "scale": result.scale,
            "scale_from": result.scale_words,
            "left_out": segmentation.left_out,
        },
        "licenses": [],
        "images": [
            {"id": 1, "file_name": result.name, "width": width, "height": height}
        ],
        "categories": [
            {"id": number, "name": name, "supercategory": "nucleus"}
            for number, name in enumerate(categories, 1)
        ],
        "annotations": annotations,
    }


def write_table(out: Path, results: Sequence[FieldResult]) -> None:
    """Writes a row for each cell, and one for each field that could not be read."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for result in results:
        for row in _rows(result):
            table.writerow(["" if value is None else value for value in row])
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / TABLE_FILE, text.getvalue())


def write_record(
    out: Path,
    results: Sequence[FieldResult],
    *,
    notes: Sequence[str],
    model: dict[str, Any] | None,
    settings: dict[str, Any],
) -> None:
    """Writes what was done, field by field."""
    fields = []
    for result in results:
        field: dict[str, Any] = {"field": result.name, "error": result.error}
        if (found := result.segmentation) is not None:
            field |= {
                "outputs": result.stem,
                "height": found.shape[0],
                "width": found.shape[1],
                "cells": len(found.nuclei),
                "decisions": dict(Counter(result.kinds())),
                "scale": result.scale,
                "scale_from": result.scale_words,
                "left_out": found.left_out,
                "notes": list(found.notes),
            }
        fields.append(field)
    record = {
        "version": __version__,
        "disclaimer": DISCLAIMER,
        "caveat": CAVEAT,
        "model": model,
        "notes": list(notes),
        "settings": settings,
        "fields": fields,
    }
    write_json(out / RECORD_FILE, record)


def _file_of(name: str) -> str:
    """Returns the file's own name, also of one in a zip."""
    return re.split(r"[/\\!]", name)[-1]


def _rows(result: FieldResult) -> Iterable[list[Any]]:
    if result.segmentation is None:
        yield [result.name, *[None] * (len(COLUMNS) - 2), result.error]
        return
    scale = None if result.scale is None else round(result.scale, 5)
    for i, nucleus in enumerate(result.segmentation.nuclei):
        said: list[Any] = [None] * 5
        if result.predictions is not None:
            one = result.predictions[i]
            abstain = None if one.abstain is None else str(one.abstain).lower()
            said = [one.probability, one.decision, one.uncertainty, abstain]
            said.append("; ".join(one.warnings))
        crop = None if scale is None else result.crop_file(i + 1)
        head = [result.name, i + 1, *nucleus.bbox, nucleus.area, scale]
        yield [*head, *said, crop, None]


def _said(prediction: Prediction) -> dict[str, Any]:
    """Returns what COCO's readers expect as `score`, and the rest."""
    probability = prediction.probability
    assert probability is not None
    return {
        "score": probability if prediction.decision == "ALL" else 1 - probability,
        "probability": probability,
        "decision": prediction.decision,
        "uncertainty": prediction.uncertainty,
        "abstain": prediction.abstain,
        "warnings": list(prediction.warnings),
    }


def _left_out_words(segmentation: Segmentation) -> str:
    counts = [f"{n} {why}" for why, n in segmentation.left_out.items() if n]
    return f"Left out: {', '.join(counts)}." if counts else "Nothing was left out."


def _write_bytes(path: Path, data: bytes) -> None:
    """Writes a file beside its place and renames it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
