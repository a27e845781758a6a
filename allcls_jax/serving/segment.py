"""The verb `segment`: from fields to cells, and what a model makes of them."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.command_line import Parser, run
from allcls_jax.data import cnmc, transforms
from allcls_jax.errors import InputError
from allcls_jax.serving import arguments
from allcls_jax.serving.model import Model, Prediction, open_model
from allcls_jax.serving.out_folder import check_out, pictures_outside, unique_stem
from allcls_jax.serving.prediction.inputs import Picture, write_list
from allcls_jax.serving.segmentation import outputs
from allcls_jax.serving.segmentation.nuclei import (
    CAVEAT,
    Segmentation,
    cut_out,
    segment,
)
from allcls_jax.serving.segmentation.outputs import FieldResult

# The median area of the 10,661 training cells of C-NMC 2019 (doi:10.7937/
# tcia.2019.dc64i46r), in pixels of their 450 x 450 pictures: what `transforms.prepare`
# counts as the cell. Stands in for the training cells' own where there is no model.
CNMC_MEDIAN_AREA = 33_162.0

_WHAT = f"""Finds the nuclei of white cells in pictures of microscope fields, cuts each
one out, centred on black at the training scale, as C-NMC 2019 has its cells, and says
what a model makes of it. Without --model it only finds and cuts.
FIELD: images, folders, zips, patterns or csv files, as for allcls predict.
DIR gets, for each field, <name>.coco.json (boxes, outlines, decisions),
<name>.overlay.png and the crops <name>/0001.png, …; for all of them cells.csv and
segment.json. A field that cannot be read is a row with the reason; the rest goes on.
Nuclei that the field's edge cuts are left out and counted.
{CAVEAT}
Without --scale the nuclei's median size is taken for that of the training cells. That
hides whether the cells of a field are large, which a model leans on: give --scale,
one for all fields, where the magnification is known."""

_EXAMPLE = """allcls segment field.png --model runs/vgg19/model --out cells
allcls segment smears/ more.zip --model model.zip --out cells --scale 0.36
allcls segment field.png --out nuclei"""

_LEAST_SCALE, _MOST_SCALE = 0.02, 50.0
_FEW = 10  # nuclei: the median of fewer is a rough guess
_BATCH = 256  # cells that are held as the network's input at once


def parser() -> Parser:
    """Returns what reads the arguments."""
    made = Parser("segment", _WHAT, _EXAMPLE)
    add = made.add_argument
    add("fields", metavar="FIELD", nargs="+", help="pictures in any of the forms above")
    add("--model", metavar="MODEL", help="model directory, a run's folder, or a zip")
    arguments.add_out_folder(made)
    add(
        "--scale",
        type=float,
        help="field pixels per training pixel, for example 0.36 where a nucleus of 200 "
        "pixels in the training pictures is 72 pixels wide (default: estimated)",
    )
    add(
        "--side",
        metavar="PIXELS",
        type=int,
        default=cnmc.SIDE,
        help="of the crops: that of the training pictures (default: %(default)s, as in "
        "C-NMC 2019)",
    )
    arguments.add_threshold(made)
    arguments.add_coverage(made)
    made.set_defaults(coverage=None)  # to tell whether it was given
    arguments.add_batch_size(made)
    add("--overwrite", action="store_true", help="replace what was segmented in DIR")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)

    def act() -> None:
        out = args.out.expanduser()
        check_out(out, overwrite=args.overwrite)
        model = None
        if args.model is not None:
            model = open_model(args.model, batch_size=args.batch_size)
            model.self_check()
        segment_fields(
            args.fields,
            out,
            model=model,
            scale=args.scale,
            side=args.side,
            threshold=args.threshold,
            coverage=args.coverage,
            overwrite=args.overwrite,
        )

    return run(act, interrupted="interrupted; the fields that were done are complete")


def segment_fields(
    fields: Sequence[str],
    out: Path,
    *,
    model: Model | None = None,
    scale: float | None = None,
    side: int = cnmc.SIDE,
    threshold: str | None = None,
    coverage: float | None = None,
    overwrite: bool = False,
) -> list[FieldResult]:
    """Segments fields, classifies their cells and writes everything into a folder.

    Args:
      fields: paths of pictures, folders, zips, patterns or csv files; pictures below
        `out` are left out.
      out: the folder.
      model: what classifies; None: nuclei are found and cut only.
      scale: field pixels per training pixel; None: estimated for each field.
      side: of the crops, pixels.
      threshold: as of `Model.threshold`.
      coverage: as of `Model.prediction`; None: the usual.
      overwrite: whether what an earlier run left may be replaced.

    Returns:
      What was found, field by field.

    Raises:
      InputError: if an argument cannot be, if the folder is not empty or a file in it
        that no earlier run left might be replaced, or if no field could be read.
      OSError: if the folder cannot be written.
    """
    check_out(out, overwrite=overwrite)
    _check(scale, side, threshold, coverage, model)
    coverage = arguments.COVERAGE if coverage is None else coverage
    job = _Job(model, scale, side, threshold, coverage)
    with tempfile.TemporaryDirectory() as folder:
        listed = write_list(fields, Path(folder) / "fields", block_size=_BATCH)
        pictures = list(pictures_outside(listed, out, unit="fields")[1])
    taken: set[str] = set()
    stems = [unique_stem(picture.name, taken) for picture in pictures]
    outputs.check_fields(out, stems)
    was_there = out.is_dir()
    out.mkdir(exist_ok=True)
    results: list[FieldResult] = []
    try:
        (out / outputs.RECORD_FILE).unlink(missing_ok=True)
        with terminal.track("segmenting", len(pictures), "fields") as advance:
            for picture, stem in zip(pictures, stems, strict=True):
                results.append(_segment_field(picture, stem, out, job))
                advance(1)
    finally:
        if results:  # also of what was done before an interruption
            outputs.write_table(out, results)
        elif not was_there:
            with contextlib.suppress(OSError):
                out.rmdir()
    outputs.write_record(
        out, results, notes=job.notes, model=job.about(), settings=job.settings()
    )
    _tell(results, job, out)
    return results


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """What is the same for all fields."""

    model: Model | None
    scale: float | None
    side: int
    threshold: str | None
    coverage: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be known of the model."""
        return () if self.model is None else tuple(self.model.notes)

    @property
    def training_area(self) -> float:
        """The median area of the training cells, pixels of their pictures."""
        return CNMC_MEDIAN_AREA if self.model is None else self.model.domain.area[1]

    def about(self) -> dict[str, Any] | None:
        """Returns what is told of the model."""
        if self.model is None:
            return None
        return {"path": str(self.model.path), "sha256": self.model.sha256}

    def settings(self) -> dict[str, Any]:
        """Returns the arguments as they took effect."""
        threshold = None if self.model is None else self.model.threshold(self.threshold)
        return {
            "scale": self.scale,
            "side": self.side,
            "training_area": self.training_area,
            "threshold": threshold,
            "coverage": None if self.model is None else self.coverage,
        }


def _check(
    scale: float | None,
    side: int,
    threshold: str | None,
    coverage: float | None,
    model: Model | None,
) -> None:
    """Raises `InputError` for what cannot be."""
    if scale is not None and not _LEAST_SCALE <= scale <= _MOST_SCALE:
        raise InputError(
            f"--scale={scale:g}: must be from {_LEAST_SCALE:g} to {_MOST_SCALE:g} "
            "field pixels per training pixel; leave it out to have it estimated"
        )
    if not 16 <= side <= 4096:
        raise InputError(f"--side={side}: must be from 16 to 4096 pixels")
    if model is not None:
        value = model.threshold(threshold)
        model.margin(value, arguments.COVERAGE if coverage is None else coverage)
        return
    for name, given in (("threshold", threshold), ("coverage", coverage)):
        if given is not None:
            raise InputError(f"--{name}={given}: needs --model; leave it out")


def _segment_field(picture: Picture, stem: str, out: Path, job: _Job) -> FieldResult:
    """Returns what was found in one field, its outputs written."""
    try:
        image = transforms.decode(picture.read(), name=picture.name)
    except InputError as error:
        terminal.warn(f"left out: {_named(picture.name, str(error))}")
        outputs.forget(out, stem)
        return FieldResult(name=picture.name, stem=stem, error=str(error))
    typical = None if job.scale is None else job.training_area * job.scale**2
    found = segment(image, typical_area=typical)
    scale, words = _scale(found, job)
    crops = []
    if scale is not None:
        crops = [
            cut_out(image, nucleus, scale=scale, side=job.side)
            for nucleus in found.nuclei
        ]
    result = FieldResult(
        name=picture.name,
        stem=stem,
        segmentation=found,
        scale=scale,
        scale_words=words,
        predictions=_classify(crops, stem, job),
    )
    outputs.write_field(out, result, image, crops, notes=job.notes, model=job.about())
    return result


def _scale(found: Segmentation, job: _Job) -> tuple[float | None, str]:
    """Returns field pixels per training pixel, and where that comes from."""
    if job.scale is not None:
        return job.scale, (
            f"Scale: {job.scale:g} field pixels per training pixel, as given."
        )
    if not found.nuclei:
        return None, "Scale: not known, for there are no nuclei to estimate it from."
    median = float(np.median(found.areas))
    scale = math.sqrt(median / job.training_area)
    whose = "C-NMC 2019's" if job.model is None else "the training cells'"
    count = len(found.nuclei)
    words = (
        f"Scale: {scale:.3f} field pixels per training pixel, estimated: the median "
        f"nucleus of {count} has {median:,.0f} pixels, {whose} median cell "
        f"{job.training_area:,.0f}. This hides whether the cells here are large; give "
        "--scale where the magnification is known."
    )
    if count < _FEW:
        words += " From so few nuclei it is a rough guess."
    return scale, words


def _classify(
    crops: Sequence[np.ndarray], stem: str, job: _Job
) -> tuple[Prediction, ...] | None:
    """Returns what the model says of each crop, read as training read its pictures."""
    model = job.model
    if model is None:
        return None
    threshold = model.threshold(job.threshold)
    said: list[Prediction] = []
    for begin in range(0, len(crops), _BATCH):
        cells = []
        for i, crop in enumerate(crops[begin : begin + _BATCH], begin + 1):
            name = f"{stem}/{i:04d}.png"
            cells.append((name, model.read(transforms.encode_png(crop), name=name)))
        images = np.stack([cell.image for _, cell in cells])
        for (name, cell), probability in zip(
            cells, model.probabilities(images), strict=True
        ):
            said.append(
                model.prediction(
                    name,
                    cell,
                    float(probability),
                    threshold=threshold,
                    coverage=job.coverage,
                )
            )
    return tuple(said)


def _tell(results: Sequence[FieldResult], job: _Job, out: Path) -> None:
    """Sums up on the terminal.

    Raises:
      InputError: if no field could be read.
    """
    read = [result for result in results if result.segmentation is not None]
    kinds = ("nucleus",) if job.model is None else outputs.DECISIONS
    rows = [
        [
            result.name,
            *(result.kinds().count(kind) for kind in kinds),
            "" if result.scale is None else f"{result.scale:.3f}",
        ]
        for result in read[:_SHOWN]
    ]
    terminal.show_table("Cells found", ["field", *kinds, "scale"], rows)
    if len(read) > _SHOWN:
        terminal.say(f"… and {len(read) - _SHOWN:,} more fields")
    scales = [result.scale for result in read if result.scale is not None]
    if job.scale is None and scales:
        advice = f" (--scale {np.median(scales):.3f} for all?)" if len(read) > 1 else ""
        terminal.warn(
            "the scale was estimated from the nuclei themselves: whether the cells are "
            f"large cannot be told; give --scale where it is known{advice}"
        )
    for note in job.notes:
        terminal.warn(note)
    if unread := len(results) - len(read):
        terminal.say(f"{unread} of {len(results)} fields could not be read")
    terminal.say(f"All of it in {out}")
    terminal.say(CAVEAT)
    terminal.say(DISCLAIMER)
    if not read:
        raise InputError(
            f"none of the {len(results)} fields could be read; the reasons stand in "
            f"{out / outputs.TABLE_FILE}"
        )


_SHOWN = 30  # fields in the table at the end


def _named(name: str, reason: str) -> str:
    """Returns a reason that says whose it is, once."""
    return reason if reason.startswith(name) else f"{name}: {reason}"
