"""What is left of segmented fields: COCO JSON, crops, overlays and one table.

Each file is written beside its place and renamed. A field's JSON comes last and goes
first: where it is, all of that field is there. Nothing is replaced or removed but what
an earlier run left, as its JSON tells.
"""

import contextlib
import csv
import dataclasses
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, __version__
from allcls_jax.atomic import write_atomically, write_json
from allcls_jax.data import transforms
from allcls_jax.serving.model import Prediction
from allcls_jax.serving.out_folder import check_foreign, own_name
from allcls_jax.serving.segmentation import overlay as segment_overlay
from allcls_jax.serving.segmentation.nuclei import CAVEAT, Segmentation

TABLE_FILE, RECORD_FILE = "cells.csv", "segment.json"

_DESCRIPTION = "Cells found in a microscope field by allcls segment"  # in the JSON

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


def check_fields(out: Path, stems: Iterable[str]) -> None:
    """Refuses a folder in which files that no earlier run left might be replaced.

    Args:
      out: the folder; need not exist.
      stems: of all fields.

    Raises:
      InputError: naming the first such file.
    """
    names = {name for name in (TABLE_FILE, RECORD_FILE) if not _is_own(out / name)}
    for stem in stems:
        there = _crops_of(out, stem) if (out / stem).is_dir() else {stem}
        names |= (there | _fixed_of(stem)) - _former(out, stem)
    check_foreign(out, names)


def forget(out: Path, stem: str) -> None:
    """Removes what an earlier run left of a field, its JSON first."""
    for name in sorted(_former(out, stem), key=lambda name: name != _json_of(stem)):
        (out / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not there, or something else is in it
        (out / stem).rmdir()


def write_field(
    out: Path,
    result: FieldResult,
    image: np.ndarray,
    crops: Sequence[np.ndarray],
    *,
    notes: Sequence[str],
    model: dict[str, Any] | None,
) -> None:
    """Writes the crops, the overlay and the JSON of a field that was read: all or none.

    What an earlier run left of it is removed.

    Args:
      out: the folder; exists.
      result: what was found.
      image: (height, width, 3) uint8 RGB, the field.
      crops: (side, side, 3) uint8 RGB of each cell; none without a scale.
      notes: what must be known of the model.
      model: what is told of it in the JSON.
    """
    assert result.segmentation is not None
    forget(out, result.stem)
    written: list[Path] = []

    def write(name: str, data: bytes) -> None:
        written.append(out / name)
        write_atomically(out / name, data)

    try:
        if crops:
            (out / result.stem).mkdir(exist_ok=True)
        for number, crop in enumerate(crops, 1):
            write(result.crop_file(number), transforms.encode_png(crop, 6))
        write(f"{result.stem}.overlay.png", overlay(result, image, notes))
        whole = coco(result, notes=notes, model=model)
        write_json(out / _json_of(result.stem), whole)
    except BaseException:  # interrupted as well
        for path in written:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (out / result.stem).rmdir()
        raise


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
        title=f"{own_name(result.name)}: {total} {'cell' if total == 1 else 'cells'}",
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
            "description": _DESCRIPTION,
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


def _json_of(stem: str) -> str:
    return f"{stem}.coco.json"


def _fixed_of(stem: str) -> set[str]:
    """Returns the names of what each field that is read has."""
    return {_json_of(stem), f"{stem}.overlay.png"}


def _crops_of(out: Path, stem: str) -> set[str]:
    """Returns the names of files that are called as a field's crops are."""
    names = (path.name for path in (out / stem).iterdir())
    return {f"{stem}/{name}" for name in names if re.fullmatch(r"\d{4,}\.png", name)}


def _former(out: Path, stem: str) -> set[str]:
    """Returns the names of files that an earlier run has left of a field."""
    try:
        record = json.loads((out / _json_of(stem)).read_text(encoding="utf-8"))
        if record["info"]["description"] != _DESCRIPTION:
            return set()
        count = 0 if record["info"]["scale"] is None else len(record["annotations"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    crops = {f"{stem}/{number:04d}.png" for number in range(1, count + 1)}
    return {name for name in crops | _fixed_of(stem) if (out / name).is_file()}


def _is_own(path: Path) -> bool:
    """Returns whether a table or a record was left by an earlier run."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.name == TABLE_FILE:
            return text.startswith(",".join(COLUMNS) + "\n")
        return {"caveat", "settings", "fields"} <= {*json.loads(text)}
    except (OSError, ValueError, TypeError):
        return False


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
