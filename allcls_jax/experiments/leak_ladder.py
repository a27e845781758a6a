"""One recipe under splits that leak more and more, and what each leak brings.

The rungs: our folds with groups of patients kept whole; the folds that the data set
comes with, which share cells under different patient ids; the split by image, which
shares patients; and the split by image after the classes were balanced with turned
copies, which puts a cell and its copies on both sides. The paper's class totals suggest
the last.
"""

import contextlib
import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.atomic import write_atomically, write_json
from allcls_jax.config import Config, ExperimentKind, SplitKind
from allcls_jax.config_rules import NUM_OFFICIAL_FOLDS
from allcls_jax.data.cells import ALL, NO_FOLD, Part
from allcls_jax.evaluation import assessment, plots
from allcls_jax.evaluation.comparison import compare
from allcls_jax.evaluation.predictions import read as read_predictions
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments import workdir as folder
from allcls_jax.experiments.cross_validation import cross_validate
from allcls_jax.experiments.provenance import provenance
from allcls_jax.experiments.setup import open_data
from allcls_jax.training import sharding

LADDER_FILE = "ladder.json"

# The paper's Table 2: 2,213 of 2,227 ALL and 2,204 of 2,226 HEM images called rightly.
# Its classes are as good as equal, so that accuracy and balanced accuracy agree.
PAPER_ACCURACY = 0.9919

RUNGS = {
    SplitKind.GROUPED: (
        "grouped folds",
        "groups of patients that share cells stand on one side",
    ),
    SplitKind.OFFICIAL: (
        "official folds",
        "patient ids stand on one side; some cells stand on both under two ids",
    ),
    SplitKind.IMAGE: (
        "images at random",
        "cells of one patient stand on both sides",
    ),
    SplitKind.IMAGE_COPIES: (
        "copies, then images at random",
        "classes balanced by turned copies first: a cell stands on both sides, turned",
    ),
}

# Notes that are true of every rung.
_OF_ALL = ("synthetic cells", "random backbone weights")

_FIGURES = ("accuracy", "balanced_accuracy", "weighted_f1", "auroc")


def climb(config: Config, workdir: Path) -> bool:
    """Cross-validates the recipe on every rung and shows them side by side.

    Args:
      config: validated; `data.split` is not read. The rung of official folds is left
        out where the data has none, that of copies where the classes are balanced.
      workdir: gets a cross-validation's folder for each rung, `ladder.json` and
        `ladder.png`.

    Returns:
      Whether it came to its end; if not, a signal stopped it and the same call goes on.

    Raises:
      InputError: if data, weights or the workdir cannot be used.
    """
    started = time.monotonic()
    config = copy.deepcopy(config)
    config.data.split = SplitKind.GROUPED  # the lowest rung, and what config.json says
    data = open_data(config)
    config = data.config
    sharding.on_first_process(lambda: folder.check(workdir, config))
    train = data.table.part == Part.TRAIN
    label, fold = data.table.label[train], data.table.fold[train]
    rungs = list(RUNGS)
    if np.any(fold == NO_FOLD):
        rungs.remove(SplitKind.OFFICIAL)
    if 2 * np.sum(label == ALL) == len(label):
        terminal.say("the classes are balanced as they are: there is nothing to copy")
        rungs.remove(SplitKind.IMAGE_COPIES)
    with contextlib.ExitStack() as claimed:
        claim = folder.claim(workdir, config)
        sharding.on_first_process(lambda: claimed.enter_context(claim))
        for kind in rungs:
            terminal.say(f"\nRung: {RUNGS[kind][0]}; {RUNGS[kind][1]}\n")
            if not cross_validate(_rung(config, kind), workdir / kind):
                return False
        sharding.on_first_process(lambda: _conclude(config, workdir, rungs, started))
    return True


def _rung(config: Config, kind: SplitKind) -> Config:
    """Returns the configuration of a rung's cross-validation."""
    child = copy.deepcopy(config)
    child.experiment.kind = ExperimentKind.CROSS_VALIDATION
    child.data.split = kind
    if kind in (SplitKind.OFFICIAL, SplitKind.HELD_OUT):
        child.experiment.num_repeats = 1
        child.data.num_folds, child.data.test_fold = NUM_OFFICIAL_FOLDS, 0
    return child


def _conclude(
    config: Config, workdir: Path, rungs: Sequence[SplitKind], started: float
) -> None:
    """Writes and shows what stands in the rungs' folders."""
    honest = read_predictions(workdir / rungs[0] / outputs.PREDICTIONS_FILE)
    found = []
    notes: dict[str, None] = {}
    for kind in rungs:
        evaluation = _read(workdir / kind / outputs.EVALUATION_FILE)
        results = _read(workdir / kind / outputs.RESULTS_FILE)
        notes |= dict.fromkeys(note for note in results["notes"] if note in _OF_ALL)
        title, explanation = RUNGS[kind]
        rung = {
            "key": str(kind),
            "title": title,
            "leaky": kind.leaky,
            "explanation": explanation,
            "images": evaluation["counts"]["images"],
            "patients": evaluation["counts"]["patients"],
            "figures": evaluation["figures"],
            "notes": results["notes"],
        }
        if kind is not rungs[0]:
            table = read_predictions(workdir / kind / outputs.PREDICTIONS_FILE)
            rung["gain"] = compare(
                table,
                honest,
                names=_FIGURES,
                num_resamples=config.evaluation.num_resamples,
            )
        found.append(rung)
    content = {
        "rungs": found,
        "paper": {
            "accuracy": PAPER_ACCURACY,
            "balanced_accuracy": PAPER_ACCURACY,
            "images": 4453,
        },
        "explained": explained(found),
        "notes": list(notes),
        "settings": evaluation["settings"],
        "seconds": round(time.monotonic() - started, 1),
        "provenance": provenance(),
        "disclaimer": DISCLAIMER,
    }
    write_atomically(workdir / "ladder.png", plots.ladder(content, "; ".join(notes)))
    write_json(workdir / LADDER_FILE, content)
    _show(content, workdir)


def explained(rungs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns how much of the way to the paper's accuracy each leak goes.

    Told in balanced accuracy: the paper's classes are equal, those of the real test
    images are not, and the rung of copies changes them.

    Args:
      rungs: of `ladder.json`, the honest one first.

    Returns:
      For each step from rung to rung, and for what is left: `step`, `gain` (in [-1, 1])
      and `share` of the paper's lead over the first rung; None where the first rung is
      not below the paper.
    """
    reached = [
        rung["figures"]["by_image"]["balanced_accuracy"]["value"] for rung in rungs
    ]
    lead = PAPER_ACCURACY - reached[0]
    steps = [
        (rung["title"], after - before)
        for rung, before, after in zip(rungs[1:], reached, reached[1:], strict=False)
    ]
    steps.append(("not explained", PAPER_ACCURACY - reached[-1]))
    return [
        {"step": name, "gain": gain, "share": gain / lead if lead > 0 else None}
        for name, gain in steps
    ]


def _show(content: Mapping[str, Any], workdir: Path) -> None:
    rows: list[Sequence[object]] = []
    for rung in content["rungs"]:
        figures = rung["figures"]["by_image"]
        gain = rung.get("gain", {}).get("figures", {}).get("weighted_f1")
        rows.append(
            (
                rung["title"] + (" (leaky)" if rung["leaky"] else ""),
                *(assessment.interval(figures[name]) for name in _FIGURES),
                "" if gain is None else assessment.interval(gain, "difference"),
            )
        )
    paper = f"{PAPER_ACCURACY:.4f}"
    rows.append(("the paper", paper, paper, "", "", ""))
    names = (name.replace("_", " ") for name in _FIGURES)
    title = "Ladder of leaks" + "".join(f" — {note}" for note in content["notes"])
    terminal.show_table(title, ("", *names, "weighted f1 gained"), rows)
    for step in content["explained"]:
        share = step["share"]
        told = "" if share is None else f", {share:.0%} of the paper's lead"
        terminal.say(f"{step['step']}: {step['gain']:+.4f} balanced accuracy{told}")
    for note in content["notes"]:
        terminal.warn(note)
    terminal.say(f"{terminal.duration(content['seconds'])}; all of it in {workdir}")
    terminal.say(DISCLAIMER)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
