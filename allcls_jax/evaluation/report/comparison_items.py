"""The tables and figures of a page that compares runs, each run having a letter."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from allcls_jax import config_files
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import plots_curves, plots_rows
from allcls_jax.evaluation.comparison import compare
from allcls_jax.evaluation.plots_rows import Line, Point, point
from allcls_jax.evaluation.report.numbers import (
    SPLITS,
    count,
    interval,
    label,
    number,
    ordered,
    percent,
    short_hash,
    signed,
    with_interval,
)
from allcls_jax.evaluation.report.parts import Picture, Table, Text
from allcls_jax.evaluation.report.pictures import curve, picture
from allcls_jax.evaluation.report.record import Folder, Missing, in_one_line
from allcls_jax.evaluation.report.tables import KINDS, code_version, seeds, yes_or_no

_PAIRED = (
    "auroc",
    "weighted_f1",
    "balanced_accuracy",
    "accuracy",
    "sensitivity",
    "specificity",
    "brier",
)

Named = Mapping[str, Folder]


def notes_of(named: Named) -> list[str]:
    """Returns what must be known of the runs, each note once with their letters."""
    letters: dict[str, list[str]] = {}
    for letter, run in named.items():
        for note in run.notes:
            letters.setdefault(note, []).append(letter)
    return [f"{', '.join(found)}: {note}" for note, found in letters.items()]


def runs(named: Named) -> Table:
    """Returns what the runs are."""
    rows = []
    for letter, run in named.items():
        data = run.results.get("data") or {}
        weights = run.results.get("weights") or {}
        record = run.results.get("provenance") or {}
        split = str(data.get("split"))
        rows.append(
            [
                letter,
                run.name,
                KINDS[run.kind],
                SPLITS.get(split, split),
                yes_or_no(data.get("leaky")),
                str(data.get("source") or "not recorded"),
                short_hash(data.get("fingerprint"), 8),
                str(weights.get("file") or weights.get("source") or "not recorded"),
                short_hash(weights.get("sha256"), 8),
                _or_dash(lambda run=run: seeds(run)),
                code_version(record.get("git"), record.get("versions") or {}),
                str(record.get("utc") or "not recorded")[:10],
            ]
        )
    return _turned(
        "The runs that are compared",
        (
            "",
            "Folder",
            "Kind",
            "Split",
            "Leaks",
            "Cells",
            "Fingerprint",
            "Weights",
            "sha256",
            "Seed",
            "Code",
            "Finished",
        ),
        rows,
    )


def figures(named: Named) -> Table:
    """Returns the figures of each run, side by side."""
    entries = {
        letter: run.evaluation("figures", "by_image") for letter, run in named.items()
    }
    counts = {letter: run.evaluation("counts") for letter, run in named.items()}
    names = ordered(dict.fromkeys(name for found in entries.values() for name in found))
    first = next(iter(named.values())).evaluation("settings")
    rows = [
        [shown, *(count(counts[letter].get(key)) for letter in named)]
        for shown, key in (
            ("Test images", "images"),
            ("Patients", "patients"),
            ("Groups", "groups"),
        )
    ]
    rows += [
        [label(name), *(with_interval(entries[letter].get(name)) for letter in named)]
        for name in names
    ]
    rows += _with_area_held_fixed(named)
    return Table(
        caption="Figures by image, each run on its own test images",
        header=("Figure", *named),
        rows=rows,
        notes=[
            f"In brackets {percent(first.get('confidence') or 0.95)} intervals over "
            "groups of patients. Runs with different test images cannot be compared by "
            "these; the paired comparison below uses the images they share."
        ],
    )


def _with_area_held_fixed(named: Named) -> list[list[str]]:
    """Returns rows of the figures; none where a run was evaluated before there were."""
    try:
        found = {x: run.evaluation("within_area") for x, run in named.items()}
    except Missing:
        return []
    shown = {
        "auroc": "AUROC within thirds by area",
        "weighted_f1": "Weighted F1 within thirds by area",
        "partial_correlation": label("partial_correlation"),
    }
    return [
        [title, *(with_interval(found[x].get(name)) for x in named)]
        for name, title in shown.items()
    ]


def forest(named: Named) -> Picture:
    """Returns the same as a picture."""
    entries = {
        letter: run.evaluation("figures", "by_image") for letter, run in named.items()
    }
    names = [name for name in _PAIRED[:-1] if all(name in e for e in entries.values())]
    if not names:
        raise Missing("the runs have no figure in common")

    return picture(
        plots_rows.forest(
            [label(name) for name in names],
            {
                letter: [point(entries[letter][name]) for name in names]
                for letter in named
            },
            label="by image, intervals over groups",
        ),
        name="side-by-side-figure",
        caption="Each run on its own test images. Lines: intervals over groups.",
        told="; ".join(
            f"{label(name)}: "
            + ", ".join(f"{x} {with_interval(entries[x][name])}" for x in named)
            for name in names
        ),
        notes=notes_of(named),
    )


def pair(one: Folder, other: Folder) -> dict[str, Any]:
    """Returns what `compare` finds of the other run against one, or raises Missing."""
    settings = one.evaluation("settings")
    try:
        return compare(
            other.predictions(),
            one.predictions(),
            names=_PAIRED,
            num_resamples=int(settings["num_resamples"]),
            seed=int(settings.get("seed") or 0),
        )
    except InputError as error:
        raise Missing(in_one_line(error)) from error


def paired(letters: tuple[str, str], found: Mapping[str, Any]) -> Table:
    """Returns the figures of two runs on the images that both have tested.

    Args:
      letters: of the first run and the one that is set against it.
      found: from `pair`.
    """
    first, second = letters
    entries = found["figures"]
    return Table(
        caption=f"{second} against {first} on {count(found['images'])} images of "
        f"{count(found['patients'])} patients that both have tested",
        header=("Figure", first, second, f"{second} − {first}", "Interval", "Below 0"),
        rows=[
            [
                label(name),
                number(entries[name].get("other")),
                number(entries[name].get("one")),
                signed(entries[name].get("difference")),
                interval(entries[name]),
                "–"
                if entries[name].get("share_below_zero") is None
                else percent(entries[name]["share_below_zero"], 1),
            ]
            for name in ordered(entries)
        ],
        notes=[
            "Difference and interval: the same resamples of groups for both. “Below "
            "0”: the share of resamples in which the difference is negative.",
            *map(str, found.get("warnings") or []),
        ],
    )


def differences(named: Named, pairs: Mapping[str, Mapping[str, Any]]) -> Picture:
    """Returns the paired differences to the first run.

    Args:
      named: the runs.
      pairs: letter → from `pair`, at least one.
    """
    first = next(iter(named))
    names = [
        name
        for name in _PAIRED
        if all(found["figures"].get(name) for found in pairs.values())
    ]
    return picture(
        plots_rows.forest(
            [label(name) for name in names],
            {
                f"{letter} − {first}": [_gap(found["figures"][name]) for name in names]
                for letter, found in pairs.items()
            },
            label="paired difference, interval over groups",
            line=Line(0, "no difference"),
        ),
        name="differences",
        caption=f"Differences to {first} on the images that both have tested. A line "
        "that crosses 0 shows no difference. Of the Brier score less is better.",
        told="; ".join(
            f"{label(name)}: "
            + ", ".join(
                f"{letter} {signed(found['figures'][name].get('difference'))} "
                f"({interval(found['figures'][name])})"
                for letter, found in pairs.items()
            )
            for name in names
        ),
        notes=notes_of(named),
    )


def _gap(entry: Mapping[str, Any]) -> Point:
    return Point(entry.get("difference"), entry.get("low"), entry.get("high"))


def roc(named: Named) -> Picture:
    """Returns the ROC curves."""
    return picture(
        plots_curves.roc({x: curve(run, "roc", "fpr") for x, run in named.items()}),
        name="roc",
        caption="ROC curves, each run on its own test images. Bands: intervals over "
        "groups.",
        told="ROC curves. AUROC: "
        + ", ".join(
            f"{x} {with_interval(run.evaluation('figures', 'by_image').get('auroc'))}"
            for x, run in named.items()
        ),
        notes=notes_of(named),
    )


def precision_recall(named: Named) -> Picture:
    """Returns the curves of precision and recall."""
    return picture(
        plots_curves.precision_recall(
            {x: curve(run, "precision_recall", "recall") for x, run in named.items()}
        ),
        name="precision-recall",
        caption="Precision and recall, each run on its own test images.",
        told="Curves of precision and recall of " + ", ".join(named),
        notes=notes_of(named),
    )


def reliability(named: Named) -> Picture:
    """Returns predicted against observed."""
    return picture(
        plots_curves.reliability(
            {
                x: run.evaluation("calibration", "reliability_before")
                for x, run in named.items()
            }
        ),
        name="reliability",
        caption="Reliability, probabilities as predicted.",
        told="Share of ALL against predicted probability of " + ", ".join(named),
        notes=notes_of(named),
    )


def common(named: Named) -> Table:
    """Returns which test images and patients two runs share."""
    tested = {x: run.predictions().of(Split.TEST) for x, run in named.items()}
    images = {x: set(rows.image_id.tolist()) for x, rows in tested.items()}
    patients = {x: set(rows.patient.tolist()) for x, rows in tested.items()}
    rows = [
        [
            f"{one} and {other}",
            count(len(images[one] & images[other])),
            count(len(images[one] - images[other])),
            count(len(images[other] - images[one])),
            count(len(patients[one] & patients[other])),
            count(_same_fold(tested[one], tested[other])),
        ]
        for one, other in itertools.combinations(named, 2)
    ]
    return Table(
        caption="Which test images two runs have in common",
        header=(
            "Runs",
            "In both",
            "Only in the first",
            "Only in the second",
            "Patients in both",
            "In the same test fold",
        ),
        rows=rows,
    )


def _same_fold(one: Any, other: Any) -> int:
    """Returns how many images both test, and in a test fold of the same number."""
    folds = [
        set(zip(rows.image_id.tolist(), rows.test_fold.tolist(), strict=True))
        for rows in (one, other)
    ]
    return len(np.unique([image for image, _ in folds[0] & folds[1]]))


def settings(named: Named) -> Table | Text:
    """Returns the settings in which the runs differ."""
    flat = {x: config_files.flatten(run.config()) for x, run in named.items()}
    names = list(dict.fromkeys(name for fields in flat.values() for name in fields))
    rows = [
        [name, *(str(flat[x].get(name, "(no such field)")) for x in named)]
        for name in names
        if len({str(fields.get(name, "(no such field)")) for fields in flat.values()})
        > 1
    ]
    if not rows:
        return Text(text="The settings of these runs do not differ.")
    return Table(
        caption="Settings in which the runs differ",
        header=("Field", *named),
        rows=rows,
        text=frozenset(range(1, len(named) + 1)),
    )


def _turned(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> Table:
    """Returns a table with a column for each of `rows`: few runs, many fields."""
    turned = list(zip(header, *rows, strict=True))
    return Table(
        caption=caption,
        header=turned[0],
        rows=turned[1:],
        text=frozenset(range(1, len(rows) + 1)),
    )


def _or_dash(tell: Callable[[], str]) -> str:
    try:
        return tell()
    except Missing:
        return "not recorded"
