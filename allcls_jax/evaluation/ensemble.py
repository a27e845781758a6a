"""A deep ensemble: what networks of one recipe predict together.

Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using
Deep Ensembles": the mean of the members' probabilities is the prediction, and their
spread tells how much of it hangs by the seed; or, where networks of all folds predict
the same cells, by the seed and by who was trained on.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from allcls_jax.data.splits import Split
from allcls_jax.evaluation.predictions import Predictions


@dataclasses.dataclass(frozen=True, slots=True)
class Ensemble:
    """Predictions of several networks taken together.

    Attributes:
      mean: a row for each image that all members have, with the name of their first
        run; of seeds one for each repeat, test fold, split and image.
      spread: (n,) float64, standard deviation of P(ALL) over the members (n - 1).
      members: the number of networks.
    """

    mean: Predictions
    spread: np.ndarray
    members: int

    def to_csv(self) -> str:
        """Returns the table as text, with the columns `spread` and `members` more."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        rows = list(csv.reader(io.StringIO(self.mean.to_csv())))
        writer.writerow((*rows[0], "spread", "members"))
        for row, spread in zip(rows[1:], self.spread.tolist(), strict=True):
            writer.writerow((*row, repr(spread), self.members))
        return text.getvalue()


def of_seeds(predictions: Predictions) -> Ensemble | None:
    """Returns the ensemble over seeds; None where there is one seed.

    Networks of different repeats were trained on other images, and are not put
    together. Where validation images differ from seed to seed, those that not all seeds
    have are left out.

    Args:
      predictions: of a cross-validation.
    """
    seeds = np.unique(predictions.seed)
    if len(seeds) < 2:
        return None
    names = ("repeat", "test_fold", "split", "image_id")
    found = _together(predictions, names, len(seeds))
    lowest = np.full(len(found.mean), seeds[0])
    return dataclasses.replace(found, mean=dataclasses.replace(found.mean, seed=lowest))


def of_runs(predictions: Predictions) -> Ensemble | None:
    """Returns the ensemble over all runs; None where there is one.

    Args:
      predictions: of runs that all test the same images; other splits are not read.
    """
    test = predictions.of(Split.TEST)
    members = len(list(test.runs()))
    return None if members < 2 else _together(test, ("image_id",), members)


def _together(predictions: Predictions, names: Sequence[str], members: int) -> Ensemble:
    """Returns means over rows that agree in these columns, where there are so many."""
    keys = np.rec.fromarrays([getattr(predictions, name) for name in names])
    _, first, number, count = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    whole = count == members
    total = np.bincount(number, predictions.probability)
    mean = total / count
    squares = np.bincount(number, (predictions.probability - mean[number]) ** 2)
    spread = np.sqrt(squares / np.maximum(count - 1, 1))
    rows = predictions.take(first[whole])
    found = dataclasses.replace(rows, probability=np.clip(mean[whole], 0, 1))
    found.check("ensemble")
    return Ensemble(found, spread[whole], members)
