"""The figures of a page that have a row for each patient, fold, baseline, …"""

from collections.abc import Mapping, Sequence
from typing import Any

from allcls_jax.evaluation import plots, plots_rows
from allcls_jax.evaluation.plots_rows import Line, point
from allcls_jax.evaluation.report.breakdown import NO_SUBGROUPS, subgroup_name
from allcls_jax.evaluation.report.evaluation import ONE_TEST_SET, fold_name
from allcls_jax.evaluation.report.numbers import (
    PAPER_ACCURACY,
    label,
    number,
    percent,
    with_interval,
)
from allcls_jax.evaluation.report.parts import Builder, Picture
from allcls_jax.evaluation.report.pictures import picture
from allcls_jax.evaluation.report.record import CROSS_VALIDATION, Folder, Missing


def patients(folder: Folder) -> list[Picture]:
    """Returns the mean probability of each patient, a figure for each class."""
    rows = folder.evaluation("patients")
    found = []
    for value, name in ((1, "ALL"), (0, "HEM")):
        chosen = [row for row in rows if row["label"] == value]
        if not chosen:
            continue
        wrong = [
            row for row in chosen if (row["mean_probability"] > 0.5) != (value == 1)
        ]
        found.append(
            picture(
                plots_rows.patients(chosen, name),
                name=f"patients-{name.lower()}",
                caption=f"{len(chosen)} {name} patients, a mark each; the larger, the "
                "more images. Hollow: the mean lies on the wrong side of 0.5 "
                f"({len(wrong)}).",
                told=f"Mean probability of each of {len(chosen)} {name} patients; "
                f"{len(wrong)} lie on the wrong side of 0.5"
                + (
                    f": {_list([str(row['patient']) for row in wrong])}."
                    if wrong
                    else "."
                ),
                notes=folder.notes,
            )
        )
    if not found:
        raise Missing("evaluation.json holds no patient")
    return found


def folds(folder: Folder) -> Picture:
    """Returns AUROC and weighted F1 of each fold and seed."""
    if folder.kind != CROSS_VALIDATION:
        raise Missing(ONE_TEST_SET)
    rows = folder.evaluation("by_fold")
    names = [name for name in ("auroc", "weighted_f1") if name in rows[0]["figures"]]
    values = {
        label(name): [_known(row["figures"].get(name)) for row in rows]
        for name in names
    }
    return picture(
        plots_rows.spread([fold_name(row, rows) for row in rows], values),
        name="folds",
        caption="Each test fold, a mark for each seed, a bar at their mean. Folds "
        "differ in their patients, seeds in chance alone.",
        told="; ".join(
            f"{fold_name(row, rows)}: "
            + ", ".join(
                f"{label(name)} {number((row['figures'].get(name) or {}).get('mean'))}"
                for name in names
            )
            for row in rows
        ),
        notes=folder.notes,
    )


def subgroups(folder: Folder) -> Picture:
    """Returns the accuracy of each subgroup."""
    rows = folder.evaluation("subgroups")
    if not rows:
        raise Missing(NO_SUBGROUPS)
    entries = [row["figures"].get("accuracy") for row in rows]
    overall = folder.evaluation("figures", "by_image").get("accuracy", {}).get("value")
    names = [_short(subgroup_name(row)) for row in rows]
    return picture(
        plots_rows.forest(
            names,
            {"accuracy": [point(entry) for entry in entries]},
            label="accuracy, interval over groups",
            line=None if overall is None else Line(overall, "all test images"),
        ),
        name="subgroups",
        caption="Accuracy in subgroups of the test images.",
        told="Accuracy: "
        + "; ".join(
            f"{name} {with_interval(entry)}"
            for name, entry in zip(names, entries, strict=True)
        ),
        notes=folder.notes,
    )


def baselines(folder: Folder) -> Picture:
    """Returns model and baselines side by side."""
    content = folder.baselines()
    rows = [("This model", content["model"]["figures"])] + [
        (str(row["name"]), row["figures"]) for row in content["baselines"]
    ]
    return picture(
        plots_rows.forest(
            [_short(name) for name, _ in rows],
            {
                label(key): [point(figures["by_image"].get(key)) for _, figures in rows]
                for key in ("weighted_f1", "auroc")
            },
            label="by image, interval over groups",
        ),
        name="baselines",
        caption="The model and what is simpler than it, on the same splits.",
        told="AUROC: "
        + "; ".join(
            f"{name} {with_interval(figures['by_image'].get('auroc'))}"
            for name, figures in rows
        ),
        notes=folder.notes,
    )


def ladder(folder: Folder) -> Picture:
    """Returns the rungs and the paper's accuracy."""
    content = folder.ladder()
    paper = (content.get("paper") or {}).get("accuracy", PAPER_ACCURACY)
    return picture(
        plots.ladder_figure(content),
        name="ladder",
        caption="Each rung is the same recipe, split in another way. Dashed: the "
        f"paper's {percent(paper, 2)}, a claim. Lines: intervals over groups.",
        told=f"Accuracy by split, the paper claims {percent(paper, 2)}: "
        + "; ".join(
            f"{rung['title']} "
            f"{with_interval(rung['figures']['by_image'].get('accuracy'))}"
            for rung in content["rungs"]
        ),
        notes=[str(note) for note in content.get("notes") or []],
    )


ROW_PICTURES: dict[str, Builder] = {
    "patients_figure": patients,
    "folds_figure": folds,
    "subgroups_figure": subgroups,
    "baselines_figure": baselines,
    "ladder_figure": ladder,
}


def _known(entry: Mapping[str, Any] | None) -> list[float]:
    values = (entry or {}).get("values") or []
    return [value for value in values if value is not None]


def _list(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _short(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
