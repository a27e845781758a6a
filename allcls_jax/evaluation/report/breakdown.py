"""The tables of a page about parts of the test images, baselines and the ladder."""

from collections.abc import Mapping, Sequence
from typing import Any

from allcls_jax.evaluation.report.numbers import (
    CLASSES,
    UNDEFINED,
    Value,
    count,
    interval,
    label,
    number,
    percent,
    reasons,
    reasons_of_rows,
    signed,
    with_interval,
)
from allcls_jax.evaluation.report.parts import Builder, Table
from allcls_jax.evaluation.report.record import Folder, Missing

NO_SUBGROUPS = "the test images are too few and too alike for subgroups"

_SMALL = ("accuracy", "weighted_f1", "auroc", "sensitivity", "specificity")
_RUNG = ("accuracy", "weighted_f1", "auroc")


def patients(folder: Folder) -> Table:
    """Returns a row for each test patient."""
    rows = sorted(
        folder.evaluation("patients"), key=lambda row: (-row["label"], row["accuracy"])
    )
    return Table(
        caption="Each test patient, of each class the worst first",
        header=(
            "Patient",
            "Group",
            "Class",
            "Images",
            "Mean probability of ALL",
            "Called ALL",
            "Accuracy",
        ),
        rows=[
            [
                str(row["patient"]),
                str(row.get("group") or "–"),
                CLASSES.get(row["label"], "–"),
                count(row["images"]),
                number(row["mean_probability"]),
                "–"
                if row.get("share_called_all") is None
                else percent(row["share_called_all"], 0),
                number(row["accuracy"]),
            ]
            for row in rows
        ],
        text=frozenset({1, 2}),
    )


def subgroups(folder: Folder) -> Table:
    """Returns figures of cells by area, fold and size of their patient."""
    rows = folder.evaluation("subgroups")
    if not rows:
        raise Missing(NO_SUBGROUPS)
    names = _names_in(rows, _SMALL)
    return Table(
        caption="Subgroups of the test images",
        header=("Subgroup", "Images", "Patients", *(label(name) for name in names)),
        rows=[
            [
                subgroup_name(row),
                count(row["images"]),
                count(row["patients"]),
                *(with_interval(row["figures"].get(name)) for name in names),
            ]
            for row in rows
        ],
        notes=reasons_of_rows(rows, names),
    )


def within_area(folder: Folder) -> Table:
    """Returns figures of all cells beside the same with the cell's area held fixed."""
    held = folder.evaluation("within_area")
    by_image = folder.evaluation("figures", "by_image")
    rows = [
        (name, by_image.get(name), held.get(name)) for name in ("auroc", "weighted_f1")
    ]
    rows += [
        ("correlation", held["correlation"], held["partial_correlation"]),
        ("correlation_with_area", held["correlation_with_area"], None),
    ]
    return Table(
        caption="What is left of the score with the cell's area held fixed",
        header=("Figure", "All cells", "Area held fixed"),
        rows=[
            [
                label(name),
                with_interval(whole),
                "–" if fixed is None else with_interval(fixed),
            ]
            for name, whole, fixed in rows
        ],
        notes=[
            "AUROC and weighted F1 with area held fixed: within thirds of the cells by "
            "area, averaged, each third weighing as much as it has pairs of an ALL and "
            "a HEM cell, or cells. Correlations are of ranks; with area held fixed it "
            "is the partial correlation.",
            *reasons(held),
        ],
    )


def subgroup_name(row: Mapping[str, Any]) -> str:
    """Returns "cell area: smallest third", "test fold 2"."""
    kind, name = str(row["kind"]), str(row["name"])
    if kind.endswith(" fold") and name.startswith("fold "):
        return f"{kind}{name.removeprefix('fold')}"
    return f"{kind}: {name}"


def baselines(folder: Folder) -> Table:
    """Returns the model beside what is simpler than it."""
    content = folder.baselines()
    model = {"name": "This model", "description": "", **content["model"]}
    rows = [model | {"name": "This model"}, *content["baselines"]]
    names = ("weighted_f1", "auroc", "balanced_accuracy", "sensitivity", "specificity")
    return Table(
        caption="The model and its baselines: same splits, same intervals",
        header=("", "What it sees", *(label(name) for name in names)),
        rows=[
            [
                str(row["name"]),
                str(row.get("description") or ""),
                *(
                    with_interval(row["figures"]["by_image"].get(name))
                    for name in names
                ),
            ]
            for row in rows
        ],
        text=frozenset({1}),
        strong=frozenset({0}),
        notes=[
            str(note) for note in content.get("notes") or [] if note not in folder.notes
        ],
    )


def ladder(folder: Folder) -> Table:
    """Returns the rungs of the ladder of leaks."""
    content = folder.ladder()
    rows = [
        [
            f"{rung['title']} (leaky)" if rung.get("leaky") else str(rung["title"]),
            *(with_interval(rung["figures"]["by_image"].get(name)) for name in _RUNG),
            _gain(rung),
            count(rung.get("images")),
            count(rung.get("patients")),
            str(rung.get("explanation") or ""),
        ]
        for rung in content["rungs"]
    ]
    paper = content.get("paper") or {}
    rows.append(
        [
            "The paper's claim",
            number(paper.get("accuracy"), 4),
            *["–"] * len(_RUNG),
            count(paper.get("images")),
            "–",
            "not stated",
        ]
    )
    return Table(
        caption="One recipe, one set of cells, divided in different ways",
        header=(
            "Split",
            *(label(name) for name in _RUNG),
            "Accuracy gained",
            "Images",
            "Patients",
            "Who stands where",
        ),
        rows=rows,
        text=frozenset({len(_RUNG) + 4}),
        strong=frozenset({len(rows) - 1}),
        notes=[
            "“Accuracy gained” is over the first row, paired on the images that both "
            "have tested, with its interval over groups."
        ],
    )


def explained(folder: Folder) -> Table:
    """Returns how much of the way to the paper's accuracy each leak goes."""
    content = folder.ladder()
    rows = content.get("explained")
    if not rows:
        raise Missing("ladder.json holds no explained")
    return Table(
        caption="From the first row's balanced accuracy to the paper's",
        header=("Step", "Balanced accuracy gained", "Share of the paper's lead"),
        rows=[
            [
                str(row["step"]),
                signed(row.get("gain")),
                UNDEFINED if row.get("share") is None else percent(row["share"], 0),
            ]
            for row in rows
        ],
        strong=frozenset({len(rows) - 1}),
    )


def _gain(rung: Mapping[str, Any]) -> str:
    entry = ((rung.get("gain") or {}).get("figures") or {}).get("accuracy")
    if entry is None:
        return "–"
    if entry.get("low") is None or entry.get("high") is None:
        return signed(entry.get("difference"))
    return Value(signed(entry.get("difference")), interval(entry))


def _names_in(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(name in row["figures"] for row in rows)]


BREAKDOWN_ITEMS: dict[str, Builder] = {
    "patients": patients,
    "subgroups": subgroups,
    "within_area": within_area,
    "baselines": baselines,
    "ladder": ladder,
    "explained": explained,
}
