"""One self-contained page of a run, and with it the model card and the checklist.

`allcls report WORKDIR…` writes `report.html`, `model_card.md`
and `claim.md` into the first folder. The page needs no network and no script. Nothing
is computed anew: figures are those that the run has recorded. The same folder gives the
same bytes.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.atomic import write_atomically
from allcls_jax.command_line import Parser, run
from allcls_jax.errors import InputError
from allcls_jax.evaluation.report import claim, comparison, model_card
from allcls_jax.evaluation.report.breakdown import BREAKDOWN_ITEMS
from allcls_jax.evaluation.report.cells import mistakes, pictures
from allcls_jax.evaluation.report.evaluation import EVALUATION_ITEMS
from allcls_jax.evaluation.report.notices import notices
from allcls_jax.evaluation.report.parts import Builder, build
from allcls_jax.evaluation.report.pictures import PICTURES
from allcls_jax.evaluation.report.pictures_rows import ROW_PICTURES
from allcls_jax.evaluation.report.record import LADDER, Folder, read
from allcls_jax.evaluation.report.rendering import page
from allcls_jax.evaluation.report.tables import KINDS, RUN_ITEMS

REPORT_FILE = "report.html"
MODEL_CARD_FILE = "model_card.md"
CLAIM_FILE = "claim.md"

_CONTENTS = (
    ("summary", "Summary"),
    ("run", "What was run"),
    ("data", "Data and split"),
    ("model", "Model and weights"),
    ("calls", "Right and wrong calls"),
    ("discrimination", "Telling ALL from HEM"),
    ("calibration", "Probabilities and calibration"),
    ("thresholds", "Thresholds and abstention"),
    ("patients", "Patients"),
    ("spread", "Spread over folds and seeds"),
    ("subgroups", "Subgroups"),
    ("baselines", "Baselines"),
    ("ladder", "Ladder of leaks"),
    ("mistakes", "Most confident mistakes"),
    ("learning", "Learning curves"),
    ("settings", "Settings"),
    ("glossary", "What the figures mean"),
    ("notices", "Notices"),
)


def write_report(
    workdirs: Sequence[Path], *, data: Path | None = None, cache: Path | None = None
) -> Path:
    """Writes page, model card and checklist into the first folder.

    Args:
      workdirs: of a run, a cross-validation or a leak ladder; several runs or
        cross-validations give a page that compares them.
      data: where the cells are now; None: where the run found them.
      cache: where packed cells are kept; None: where the run kept them.

    Returns:
      The page's path.

    Raises:
      InputError: if a folder is no finished run, or its files are damaged.
    """
    if not workdirs:
        raise InputError("WORKDIR: none is given; name the folder of a run")
    folders = [read(path) for path in workdirs]
    first = folders[0]
    if len(folders) == 1:
        html = _single(first, data=data, cache=cache)
    else:
        html = comparison.render(folders)
    card, checklist = model_card.render(first), claim.render(first)
    write_atomically(first.path / MODEL_CARD_FILE, card)
    write_atomically(first.path / CLAIM_FILE, checklist)
    write_atomically(first.path / REPORT_FILE, html)
    return first.path / REPORT_FILE


def _single(folder: Folder, *, data: Path | None, cache: Path | None) -> str:
    """Returns the page of one folder."""
    run = folder.detail if folder.kind == LADDER else folder
    about: dict[str, Builder] = {"what_was_run": RUN_ITEMS["what_was_run"]}
    ladder: dict[str, Builder] = {
        "ladder": BREAKDOWN_ITEMS["ladder"],
        "explained": BREAKDOWN_ITEMS["explained"],
        "ladder_figure": ROW_PICTURES["ladder_figure"],
    }
    every = RUN_ITEMS | EVALUATION_ITEMS | BREAKDOWN_ITEMS | PICTURES | ROW_PICTURES
    details: dict[str, Builder] = {
        name: builder for name, builder in every.items() if name not in about | ladder
    } | {
        "mistakes": mistakes,
        "cells": functools.partial(pictures, data=data, cache=cache),
    }
    return page(
        "report.html",
        title="Evaluation report",
        subtitle=_subtitle(folder),
        disclaimer=DISCLAIMER,
        notes=folder.notes,
        contents=_contents(folder),
        page=build(folder, about | ladder) | build(run, details),
        is_ladder=folder.kind == LADDER,
        rung=run.path.name if run is not None and folder.kind == LADDER else "",
        notices=notices(folder),
    )


def _contents(folder: Folder) -> list[tuple[str, str]]:
    """Returns id and title of each section in their order."""
    if folder.kind != LADDER:
        return list(_CONTENTS)
    ladder = [entry for entry in _CONTENTS if entry[0] == "ladder"]
    return ladder + [entry for entry in _CONTENTS if entry[0] != "ladder"]


def _subtitle(folder: Folder) -> str:
    config = {}
    if (folder.path / "config.json").exists():
        config = folder.config()
    model = str((config.get("model") or {}).get("name") or "").upper()
    time = str((folder.results.get("provenance") or {}).get("utc") or "")[:10]
    what = f"{folder.name}, {KINDS[folder.kind]}"
    return ", ".join(filter(None, (model, what, time)))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of a run: `report WORKDIR…`. Returns the exit code."""
    args = parser().parse_args(argv)

    def report() -> None:
        written = write_report(
            [path.expanduser() for path in args.workdir],
            data=args.data and args.data.expanduser(),
            cache=args.cache and args.cache.expanduser(),
        )
        terminal.say(
            f"{written}, with {MODEL_CARD_FILE} and {CLAIM_FILE} beside it. "
            f"{DISCLAIMER}"
        )

    return run(report)


def parser() -> Parser:
    """Returns the reader of its arguments."""
    parser = Parser(
        "report",
        "Writes report.html, model_card.md and claim.md into the first WORKDIR: one "
        "page that opens offline, the model card and the CLAIM checklist. Several "
        "WORKDIRs give a page that compares them.",
        "allcls report runs/vgg19-cv/2026-01-31T12-00-00Z --data ~/C-NMC_Leukemia",
    )
    parser.add_argument(
        "workdir",
        type=Path,
        nargs="+",
        metavar="WORKDIR",
        help="folder of a run, a cross-validation or a ladder of leaks",
    )
    parser.add_argument(
        "--data", type=Path, help="the cells, for pictures (default: as in the run)"
    )
    parser.add_argument(
        "--cache", type=Path, help="folder of packed cells (default: as in the run)"
    )
    return parser
