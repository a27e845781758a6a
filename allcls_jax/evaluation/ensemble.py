"""A deep ensemble: what networks that differ in their seed alone predict together.

Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using
Deep Ensembles": the mean of the members' probabilities is the prediction, and their
spread tells how much of it hangs by the seed.
"""

import csv
import dataclasses
import io

import numpy as np

from allcls_jax.evaluation.predictions import Predictions


@dataclasses.dataclass(frozen=True, slots=True)
class Ensemble:
    """Predictions of all seeds taken together.

    Attributes:
      mean: one row for each repeat, test fold, split and image that all seeds have; its
        `seed` is the lowest of them.
      spread: (n,) float64, standard deviation of P(ALL) over the seeds (n - 1).
      members: the number of seeds.
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
    keys = np.rec.fromarrays(
        [
            predictions.repeat,
            predictions.test_fold,
            predictions.split,
            predictions.image_id,
        ]
    )
    _, first, number, count = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    whole = count == len(seeds)
    total = np.bincount(number, predictions.probability)
    mean = total / count
    squares = np.bincount(number, (predictions.probability - mean[number]) ** 2)
    spread = np.sqrt(squares / np.maximum(count - 1, 1))
    found = dataclasses.replace(
        predictions.take(first[whole]),
        probability=np.clip(mean[whole], 0, 1),
        seed=np.full(int(whole.sum()), seeds[0]),
    )
    found.check("ensemble")
    return Ensemble(found, spread[whole], len(seeds))
