"""The CLAIM checklist of a run, filled from its record.

Items and numbers are those of Mongan et al. (Radiology: Artificial Intelligence 2,
2020) and of the update by Tejani et al. (2024), in our own words. An item that the
record cannot answer is marked as not available, never guessed.
"""

import dataclasses
from collections.abc import Iterator

from allcls_jax import DISCLAIMER
from allcls_jax.evaluation.report.answers import NOT_AVAILABLE, answers
from allcls_jax.evaluation.report.notices import notices
from allcls_jax.evaluation.report.record import Folder
from allcls_jax.evaluation.report.rendering import document


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One line of the checklist.

    Attributes:
      old: its number in 2020, None if it came with the update.
      new: its number in 2024, None if the update has dropped it.
      item: what is asked.
      answer: text in which `{topic}` stands for a sentence of `answers`.
    """

    old: int | None
    new: int | None
    item: str
    answer: str = NOT_AVAILABLE


SECTIONS: dict[str, tuple[Item, ...]] = {
    "Title and abstract": (
        Item(1, 1, "Says that it is AI, and of which kind", "Deep learning. {network}"),
        Item(
            2,
            2,
            "Summary of design, methods, results, conclusions",
            "Design: {kind}. {split}. Result: {performance} Conclusions: not available",
        ),
    ),
    "Introduction": (
        Item(
            3,
            3,
            "Background, intended use and role of the AI",
            "Intended use: {disclaimer} Background: not available",
        ),
        Item(4, 4, "Aims and hypotheses"),
    ),
    "Methods: design": (
        Item(5, 5, "Prospective or retrospective", "{design}"),
        Item(
            6,
            6,
            "Goal of the study",
            "Training and testing of a model: {kind}. Anything beyond: not available",
        ),
    ),
    "Methods: data": (
        Item(7, 7, "Sources of the data", "{data}"),
        Item(8, 8, "Who or what was included and excluded, where and when"),
        Item(9, 9, "Preprocessing", "{preprocessing}"),
        Item(10, 10, "Choice of parts of the data", "{subset}"),
        Item(
            11,
            None,
            "Definitions of the data's elements",
            "ALL: leukemic lymphoblast, the positive class (1). HEM: normal cell (0). "
            "Group: patients that share cells. Common data elements: not available",
        ),
        Item(12, 11, "De-identification"),
        Item(13, 12, "Missing data", "{missing_data}"),
        Item(None, 13, "How the images were acquired"),
    ),
    "Methods: reference standard": (
        Item(
            14,
            14,
            "What the truth is taken to be",
            "The class that the data set gives with each image; how it was obtained: "
            "not available",
        ),
        Item(15, 15, "Why this reference"),
        Item(16, 16, "Who annotated"),
        Item(17, None, "Annotation tools"),
        Item(
            None,
            17,
            "Annotation of the test set",
            "The data set's own labels, as in training; by whom: not available",
        ),
        Item(18, 18, "Agreement of annotators"),
    ),
    "Methods: partitions": (
        Item(
            19,
            21,
            "Size of the sample and its reason",
            "{partition}. Calculation of a sample size: not available",
        ),
        Item(20, 19, "How images were divided", "{split}"),
        Item(21, 20, "Level at which the parts are disjoint", "{disjoint}"),
    ),
    "Methods: model": (
        Item(22, 22, "The model, input to output", "{network}. {layers}"),
        Item(23, 23, "Software", "{software}"),
        Item(24, 24, "Initial parameters", "{weights}"),
    ),
    "Methods: training": (
        Item(25, 25, "How it was trained", "{training}. {hardware}. {settings}"),
        Item(26, 26, "How the final model was chosen", "{selection}"),
        Item(27, 27, "Ensembles", "{ensembling}"),
    ),
    "Methods: evaluation": (
        Item(28, 28, "Figures", "{metrics}"),
        Item(29, 29, "Uncertainty and significance", "{uncertainty}"),
        Item(30, 30, "Robustness", "{robustness}"),
        Item(31, 31, "Explanation of the model's calls"),
        Item(None, 32, "Test on internal data", "{performance}"),
        Item(
            32,
            33,
            "Test on external data",
            "not available: all images come from the one source of {data}",
        ),
    ),
    "Results": (
        Item(33, 35, "Numbers included and excluded", "{partition}. {missing_data}"),
        Item(
            34,
            36,
            "Who the patients of each part are",
            "Numbers by class: partition table in report.html. Age, sex and clinical "
            "data: not available",
        ),
        Item(35, 37, "Figures of the model on all parts", "{by_part}"),
        Item(36, 38, "Diagnostic performance and its precision", "{performance}"),
        Item(37, 39, "Where it fails", "{failures}"),
    ),
    "Discussion": (
        Item(38, 40, "Limits", "{limitations}"),
        Item(39, 41, "What it means in practice", "Nothing yet. {disclaimer}"),
    ),
    "Other information": (
        Item(40, 34, "Registration of the study"),
        Item(
            41,
            42,
            "Protocol and technical details",
            "Command: {command}. {settings}; protocol: not available",
        ),
        Item(
            None,
            43,
            "Availability of software, model and data",
            "Software: Apache-2.0. {weights}. Data: see the notices",
        ),
        Item(42, 44, "Funding"),
    ),
}


def items() -> Iterator[Item]:
    """Yields every item of both versions, each once."""
    for rows in SECTIONS.values():
        yield from rows


def render(folder: Folder) -> str:
    """Returns the checklist as Markdown.

    Args:
      folder: of a run or a cross-validation; of a ladder its first honest rung.

    Raises:
      InputError: if a file of the run is damaged.
    """
    told = answers(folder)
    sections = [
        (
            title,
            [
                {
                    "old": row.old or "–",
                    "new": row.new or "–",
                    "item": row.item,
                    "answer": row.answer.format_map(told),
                }
                for row in rows
            ],
        )
        for title, rows in SECTIONS.items()
    ]
    every = [row["answer"] for _, rows in sections for row in rows]
    return document(
        "claim.md",
        name=folder.name,
        disclaimer=DISCLAIMER,
        notes=folder.notes,
        sections=sections,
        answered=sum(not str(line).startswith(NOT_AVAILABLE) for line in every),
        total=len(every),
        notices=notices(folder),
        not_available=NOT_AVAILABLE,
    )
