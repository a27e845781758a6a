"""The table that every figure comes from: one row an image, with its patient."""

import csv
import dataclasses
import io
from collections.abc import Mapping

import numpy as np

from allcls_jax.data.cells import NO_FOLD, CellTable

HEADER = ("image_id", "patient", "label", "probability", "part", "fold", "split")


@dataclasses.dataclass(frozen=True, slots=True)
class Predictions:
    """Rows of one or several splits; columns have the same length n.

    Attributes:
      cells: (n,) records, all labelled.
      probability: (n,) float64 in [0, 1], P(ALL).
      split: (n,) str, values of `splits.Split`.
    """

    cells: CellTable
    probability: np.ndarray
    split: np.ndarray

    def of(self, split: str) -> "Predictions":
        """Returns the rows of one split."""
        rows = np.flatnonzero(self.split == split)
        return Predictions(
            self.cells.take(rows), self.probability[rows], self.split[rows]
        )

    def to_csv(self) -> str:
        """Returns the table as text; an image without a fold has an empty one."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        cells = self.cells
        for row in range(len(cells)):
            fold = int(cells.fold[row])
            writer.writerow(
                (
                    cells.image_id[row],
                    cells.patient[row],
                    int(cells.label[row]),
                    # Nine digits give back the same float32.
                    f"{self.probability[row]:.9g}",
                    cells.part[row],
                    "" if fold == NO_FOLD else fold,
                    self.split[row],
                )
            )
        return text.getvalue()


def join(
    table: CellTable, probabilities: Mapping[str, Mapping[int, float]]
) -> Predictions:
    """Returns the predictions, split by split, each in the table's order.

    Args:
      table: of all cells.
      probabilities: split → row of the table → P(ALL).
    """
    keys = [(use, row) for use, found in probabilities.items() for row in sorted(found)]
    return Predictions(
        table.take(np.array([row for _, row in keys])),
        np.array([probabilities[use][row] for use, row in keys]),
        np.array([str(use) for use, _ in keys]),
    )
