"""What a sweep tells of its candidates: one order, figures, and what each gains.

The order is that of the AUROC over out-of-fold images, the mean over seeds and repeats:
it asks for no threshold, and every pair of images counts, so it wavers less from seed
to seed than any figure of calls. Ties go to the lower log loss after temperatures,
since a temperature takes away what label smoothing and the like do to confidence.
"""

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.atomic import write_atomically, write_json
from allcls_jax.data import left_out
from allcls_jax.errors import list_problems
from allcls_jax.evaluation.assessment import interval
from allcls_jax.evaluation.comparison import compare
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.evaluation.predictions import read as read_predictions
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments.provenance import provenance

LEFT_OUT_FILE = "left_out.json"
RANKING_FILE = "ranking.json"

BASE = "base"  # the configuration itself

RANKED_BY = "auroc"

# Name → heading, and where it stands in `evaluation.json`.
FIGURES = {
    "auroc": ("AUROC", ("figures", "by_image", "auroc")),
    "weighted_f1": ("weighted F1", ("figures", "by_image", "weighted_f1")),
    "patient_accuracy": (
        "accuracy, patients equal",
        ("figures", "patients_equal", "accuracy"),
    ),
    "ece": ("ECE, calibrated", ("calibration", "after", "ece")),
    "log_loss": ("log loss, calibrated", ("calibration", "after", "log_loss")),
}

_GAINS = ("auroc", "weighted_f1")

_FLATTERS = (
    "the first of many flatters itself: what a recipe is worth is told by a run that "
    "tests the patients left out here"
)


def explained(told: Mapping[str, Any]) -> str:
    """Returns who was left out and who is left, in words.

    Args:
      told: `left_out` of `ranking.json`.
    """
    rest = told["rest"]
    named = f", {told['named']} named in data.without" if told["named"] else ""
    return (
        f"left out: {told['tested']} patients tested ({told['test_set']}), "
        f"{told['joined']} more who share cells with them{named}; the choice is made "
        f"on {rest['images']:,} images of {rest['patients']} others, "
        f"{rest['folds']} grouped folds, {rest['seeds']} seed(s), "
        f"{rest['repeats']} repeat(s)"
    )


def conclude(
    workdir: Path,
    settings: Mapping[str, Sequence[str]],
    failed: Mapping[str, str],
    told: Mapping[str, Any],
    *,
    num_resamples: int,
    seconds: float,
) -> None:
    """Ranks the cross-validations in a sweep's folder; writes and shows the ranking.

    Args:
      workdir: of the sweep.
      settings: of each candidate by its name, the base first.
      failed: name → why it did not come to its end.
      told: who was left out, for `ranking.json`.
      num_resamples: of the bootstrap behind the intervals of gains.
      seconds: that the sweep took.

    Raises:
      InputError: if every candidate failed.
    """
    done = [name for name in settings if name not in failed]
    if not done:
        raise list_problems(
            "no candidate came to its end",
            (f"{name}: {reason}" for name, reason in failed.items()),
            remedy="Mend the configuration",
        )
    names = left_out.read(str(workdir / LEFT_OUT_FILE)).patients
    notes: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    tables: dict[str, Predictions] = {}
    for name in done:
        tables[name] = read_predictions(workdir / name / outputs.PREDICTIONS_FILE)
        known = np.intersect1d(tables[name].patient, names)
        assert not len(known), f"{name} tells of patients left out: {known.tolist()}"
        results = _read(workdir / name / outputs.RESULTS_FILE)
        notes |= dict.fromkeys(results["notes"])
        base = tables.get(BASE) if name != BASE else None
        rows.append(
            {
                "name": name,
                "settings": list(settings[name]),
                "figures": _figures(_read(workdir / name / outputs.EVALUATION_FILE)),
                "gain": None
                if base is None
                else _gain(tables[name], base, num_resamples),
                # Of training and testing; features are computed once for all.
                "seconds": round(sum(run["seconds"] for run in results["runs"]), 1),
            }
        )
    content = {
        "ranked_by": RANKED_BY,
        "candidates": [
            *({"rank": place} | row for place, row in enumerate(ranked(rows), 1)),
            *(
                {"rank": None, "name": name, "settings": list(settings[name])}
                | {"reason": reason}
                for name, reason in failed.items()
            ),
        ],
        "left_out": told,
        "notes": [*notes, _FLATTERS],
        "seconds": round(seconds, 1),
        "provenance": provenance(),
        "disclaimer": DISCLAIMER,
    }
    write_atomically(workdir / "ranking.csv", _csv(content))
    write_atomically(workdir / "ranking.md", _markdown(content))
    write_json(workdir / RANKING_FILE, content)
    _show(content, workdir)


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the candidates, the best first; those that are equal as they were."""

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        figures = row["figures"]
        return -figures[RANKED_BY]["value"], figures["log_loss"]["value"]

    return sorted(rows, key=place)


def _figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns each figure of `FIGURES`: `value`, `low` and `high` over groups."""
    found = {}
    for name, (_, path) in FIGURES.items():
        entry: Mapping[str, Any] = evaluation
        for key in path:
            entry = entry[key]
        found[name] = {key: entry[key] for key in ("value", "low", "high")}
    return found


def _gain(one: Predictions, base: Predictions, num_resamples: int) -> dict[str, Any]:
    """Returns how much more a candidate reaches than the base, image by image."""
    found = compare(one, base, names=_GAINS, num_resamples=num_resamples)["figures"]
    keys = ("difference", "low", "high", "share_below_zero")
    return {name: {key: found[name][key] for key in keys} for name in _GAINS}


def _csv(content: Mapping[str, Any]) -> str:
    """Returns the ranking without times: the same however often it was stopped."""
    file = io.StringIO()
    ends = ("low", "high")
    columns = ["rank", "name", "settings"]
    columns += [f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")]
    columns += [f"{name}_gain{end}" for name in _GAINS for end in ("", "_low", "_high")]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*columns, "reason"])
    for row in content["candidates"]:
        values = [row["rank"], row["name"], " ".join(row["settings"])]
        for name in FIGURES:
            figure = row.get("figures", {}).get(name, {})
            values += [figure.get(key) for key in ("value", *ends)]
        for name in _GAINS:
            gain = (row.get("gain") or {}).get(name, {})
            values += [gain.get(key) for key in ("difference", *ends)]
        writer.writerow([*values, row.get("reason")])
    return file.getvalue()


def _table(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the table that people read."""
    header = ["", "candidate", "settings"]
    for name, (title, _) in FIGURES.items():
        header += [title, f"{title} gained"] if name == RANKED_BY else [title]
    rows = []
    for row in content["candidates"]:
        cells = [str(row["rank"] or "–"), row["name"], " ".join(row["settings"])]
        for name in FIGURES:
            cells.append(interval(row["figures"][name]) if "figures" in row else "")
            if name == RANKED_BY:
                gain = row.get("gain")
                cells.append(interval(gain[name], "difference") if gain else "")
        time = terminal.duration(row["seconds"]) if "seconds" in row else "failed"
        rows.append([*cells, time])
    return [*header, "time"], rows


def _markdown(content: Mapping[str, Any]) -> str:
    header, rows = _table(content)
    marks = ["--:", "---", "---", *["--:"] * (len(header) - 3)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in (header, marks, *escaped)]
    lines += ["", *(f"- {line}" for line in _remarks(content))]
    return "\n".join(lines) + "\n"


def _remarks(content: Mapping[str, Any]) -> list[str]:
    """Returns what stands below the table: who was left out, failures and notes."""
    failures = [
        f"{row['name']} failed: {' '.join(row['reason'].split())}"
        for row in content["candidates"]
        if "reason" in row
    ]
    return [explained(content["left_out"]), *failures, *content["notes"]]


def _show(content: Mapping[str, Any], workdir: Path) -> None:
    header, rows = _table(content)
    # What a candidate sets stands in the files, and would fill the terminal.
    shown = [
        [cell for number, cell in enumerate(row) if number != 2]
        for row in (header, *rows)
    ]
    terminal.show_table("Sweep, by AUROC of images out of fold", shown[0], shown[1:])
    remarks = _remarks(content)
    terminal.say(remarks[0])
    for remark in remarks[1:]:
        terminal.warn(remark)
    first = content["candidates"][0]
    flags = shlex.join(f"--config.{setting}" for setting in first["settings"])
    terminal.say(
        f"first: {first['name']}"
        + (f"; to train with it, give a run {flags}" if flags else "")
    )
    terminal.say(f"{terminal.duration(content['seconds'])}; all of it in {workdir}")
    terminal.say(DISCLAIMER)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
