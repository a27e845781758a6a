"""Figures of images under many weightings at once: the bootstrap's inner loop.

They are `metrics.measure` with the same `sample_weight`, row by row; a test holds them
equal. NaN stands for what is undefined under a weighting.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from allcls_jax.data.cells import ALL
from allcls_jax.evaluation import calibration, cox
from allcls_jax.evaluation.metrics import CALL_NAMES, RANK_NAMES, predictive_values
from allcls_jax.evaluation.ranking import Ranking, at_shares, dot, rank

FALSE_ALARMS = np.arange(101) / 100  # where a ROC curve is read
RECALLS = np.arange(1, 101) / 100  # where a precision-recall curve is
CURVES = ("tpr", "precision")
COVERAGES = np.arange(1, 21) / 20  # where an abstention curve is


@dataclasses.dataclass(frozen=True, slots=True)
class Images:
    """The images of one pass, and which unit's count weighs each of them.

    Attributes:
      label: (n,) ALL or HEM.
      probability: (n,) P(ALL).
      called: (n,) bool, whether it is called ALL.
      unit: (n,) int64, columns of the counts.
      scale: (n,) what a count is multiplied with, or None for 1.
      ranking: of `probability`.
    """

    label: np.ndarray
    probability: np.ndarray
    called: np.ndarray
    unit: np.ndarray
    scale: np.ndarray | None
    ranking: Ranking

    def weights(self, counts: np.ndarray) -> np.ndarray:
        """Returns (b, n) float64 of counts (b, u)."""
        weights = counts.take(self.unit, axis=1)
        if self.scale is not None:
            weights *= self.scale
        return weights


def images(
    label: np.ndarray,
    probability: np.ndarray,
    called: np.ndarray,
    unit: np.ndarray,
    scale: np.ndarray | None = None,
) -> Images:
    """Returns images with their ranking; the arguments are as in `Images`."""
    return Images(label, probability, called, unit, scale, rank(probability))


@np.errstate(invalid="ignore", divide="ignore")  # NaN tells
def figures(
    given: Images, weights: np.ndarray, names: Sequence[str], *, prevalence: float
) -> dict[str, np.ndarray]:
    """Returns figures under many weightings of the same images.

    Args:
      given: n images.
      weights: (b, n), not negative.
      names: of `metrics.NAMES`, `log_loss` and `CURVES`.
      prevalence: share of ALL that PPV and NPV are stated for.

    Returns:
      Name → (b,), NaN where undefined: `metrics.measure` of the same weights. Of the
      curves, `tpr` is (b, 101) at `FALSE_ALARMS`, on the straight lines between the
      thresholds, and `precision` (b, 100) at `RECALLS`, that of the highest threshold
      whose recall is enough.
    """
    label, probability = given.label, given.probability
    positive = (label == ALL).astype(np.float64)
    result: dict[str, np.ndarray] = {}
    if set(names) & set(CALL_NAMES):
        called = given.called.astype(np.float64)
        # Four disjoint sums: none is a difference, so that nil is exactly nil.
        sums = [
            dot(weights, actual * call)
            for actual in (positive, 1 - positive)
            for call in (called, 1 - called)
        ]
        result |= _of_calls(*sums, prevalence=prevalence)
    if set(names) & {*RANK_NAMES, *CURVES, "ece"}:
        of_all = weights * positive
        hits = given.ranking.sums(of_all)
        alarms = given.ranking.sums(weights - of_all)
        if set(names) & set(RANK_NAMES):
            result |= _of_ranks(hits, alarms)
        if set(names) & set(CURVES):
            result |= _curves(hits, alarms)
        if "ece" in names:
            excess = hits - given.ranking.sums(weights * probability)
            result["ece"] = calibration.calibration_error(hits + alarms, excess)
    if "brier" in names:
        result["brier"] = _mean(weights, (probability - positive) ** 2)
    if "log_loss" in names:
        losses = calibration.log_losses(label, probability)
        result["log_loss"] = _mean(weights, losses)
    if "calibration_slope" in names:
        result["calibration_slope"] = cox.slope(
            label, probability, weights, given.ranking
        )
    if "calibration_intercept" in names:
        result["calibration_intercept"] = cox.intercept(
            label, probability, weights, given.ranking
        )
    return {name: result[name] for name in names}


@np.errstate(invalid="ignore")
def errors_at_coverage(given: Images, weights: np.ndarray) -> np.ndarray:
    """Returns the share called wrongly (b, 20) among the `COVERAGES` most confident.

    Args:
      given: their `ranking` is by confidence.
      weights: (b, n), not negative.
    """
    wrong = given.called != (given.label == ALL)
    mass = given.ranking.sums(weights)
    found = at_shares(mass, given.ranking.sums(weights * wrong), COVERAGES)
    return found / (mass[:, -1:] * COVERAGES)


def _of_ranks(hits: np.ndarray, alarms: np.ndarray) -> dict[str, np.ndarray]:
    """Returns AUROC, ties counting half, and average precision.

    Args:
      hits: (b, k + 1) weight of ALL above each threshold.
      alarms: (b, k + 1) weight of HEM above each.
    """
    found = np.diff(hits, axis=1)
    positive, negative = hits[:, -1], alarms[:, -1]
    above = dot(found, alarms[:, 1:]) + dot(found, alarms[:, :-1])
    called = hits + alarms
    called[:, 0] = 1
    called[called == 0] = 1  # of images before the first that a resample holds
    found *= hits[:, 1:]
    found /= called[:, 1:]
    both = (positive > 0) & (negative > 0)
    auroc = 1 - above / (2 * positive * negative)
    return {
        "auroc": np.where(both, auroc, np.nan),
        "average_precision": np.where(both, found.sum(1) / positive, np.nan),
    }


def _curves(hits: np.ndarray, alarms: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the curves of the same sums."""
    tpr = np.full((len(hits), len(FALSE_ALARMS)), np.nan)
    precision = np.full((len(hits), len(RECALLS)), np.nan)
    for row in np.flatnonzero((hits[:, -1] > 0) & (alarms[:, -1] > 0)):
        found, false = hits[row], alarms[row]
        tpr[row] = np.interp(FALSE_ALARMS * false[-1], false, found) / found[-1]
        # A share such as 7 of 100 must be found to be 0.07.
        at = np.searchsorted(found, RECALLS * found[-1] * (1 - 1e-12))
        precision[row] = found[at] / (found[at] + false[at])
    return {"tpr": tpr, "precision": precision}


def _of_calls(
    hits: np.ndarray,
    missed: np.ndarray,
    alarms: np.ndarray,
    cleared: np.ndarray,
    *,
    prevalence: float,
) -> dict[str, np.ndarray]:
    """Returns the figures of calls from the weights (b,) in the confusion matrix."""
    positive, negative = hits + missed, alarms + cleared
    sensitivity, specificity = hits / positive, cleared / negative
    of_all = _or_zero(2 * hits, 2 * hits + alarms + missed)
    of_hem = _or_zero(2 * cleared, 2 * cleared + alarms + missed)
    mcc = _or_zero(
        hits * cleared - alarms * missed,
        np.sqrt(positive * negative * (hits + alarms) * (cleared + missed)),
    )
    ppv, npv = predictive_values(sensitivity, specificity, prevalence)
    total = positive + negative
    return {
        "accuracy": (hits + cleared) / total,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "weighted_f1": (positive * of_all + negative * of_hem) / total,
        "mcc": np.where((positive > 0) & (negative > 0), mcc, np.nan),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": ppv,
        "npv": npv,
    }


def _or_zero(value: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Returns the quotient, 0 where it is 0 / 0, as scikit-learn has it."""
    return np.divide(value, by, out=np.zeros_like(value), where=by > 0)


def _mean(weights: np.ndarray, value: np.ndarray) -> np.ndarray:
    return dot(weights, value) / weights.sum(1)
