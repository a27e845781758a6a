"""The model card of a run: the sections of Mitchell et al., Model Cards for Model
Reporting (2019), filled from the run's record and nothing else.
"""

from allcls_jax.evaluation.report.answers import NOT_AVAILABLE, answers
from allcls_jax.evaluation.report.breakdown import subgroup_name
from allcls_jax.evaluation.report.notices import notices
from allcls_jax.evaluation.report.numbers import (
    interval,
    label,
    number,
    ordered,
    with_interval,
)
from allcls_jax.evaluation.report.parts import Absent, Table, build
from allcls_jax.evaluation.report.record import Folder
from allcls_jax.evaluation.report.rendering import document
from allcls_jax.evaluation.report.tables import partition


def render(folder: Folder) -> str:
    """Returns the model card as Markdown.

    Args:
      folder: of a run or a cross-validation; of a ladder its first honest rung.

    Raises:
      InputError: if a file of the run is damaged.
    """
    run = folder.detail or folder
    tables: dict[str, Table | Absent] = build(
        run, {"partition": partition, "figures": _figures, "subgroups": _subgroups}
    )
    return document(
        "model_card.md",
        name=folder.name,
        notes=folder.notes,
        told=answers(folder),
        tables=tables,
        notices=notices(folder),
        not_available=NOT_AVAILABLE,
    )


def _figures(folder: Folder) -> Table:
    every = folder.evaluation("figures")
    by_image, patient = (
        folder.evaluation("figures", "by_image"),
        every.get("by_patient"),
    )
    return Table(
        caption="Test figures",
        header=("Figure", "By image", "Interval over groups", "By patient"),
        rows=[
            [
                label(name),
                number(by_image[name].get("value")),
                interval(by_image[name]),
                with_interval(patient[name]) if patient and name in patient else "–",
            ]
            for name in ordered(by_image)
        ],
    )


def _subgroups(folder: Folder) -> Table:
    rows = folder.evaluation("subgroups")
    return Table(
        caption="Subgroups",
        header=("Subgroup", "Images", "Patients", "Accuracy", "AUROC"),
        rows=[
            [
                subgroup_name(row),
                str(row["images"]),
                str(row["patients"]),
                with_interval(row["figures"].get("accuracy")),
                with_interval(row["figures"].get("auroc")),
            ]
            for row in rows
        ],
    )
