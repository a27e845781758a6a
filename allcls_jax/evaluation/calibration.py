"""How far probabilities can be taken at their word, and what mends them.

Temperature and thresholds are fitted on the rows they are given: those of validation.
An image above a threshold, strictly, is called ALL.
"""

import dataclasses

import numpy as np
from scipy import optimize, special

from allcls_jax.data.cells import ALL, HEM
from allcls_jax.evaluation.cox import logit
from allcls_jax.evaluation.ranking import Ranking, at_shares, rank

NUM_BINS = 10

_TEMPERATURES = (0.05, 20.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """A number fitted on validation rows, or why there is none."""

    value: float | None
    reason: str | None = None


def log_losses(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Returns -log of what each label was given (n,), in nats, as `logit` clips it."""
    return np.logaddexp(0, np.where(label == ALL, -1, 1) * logit(probability))


def calibrate(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the probabilities with their logits divided by a temperature."""
    if temperature == 1:
        return probability
    return special.expit(logit(probability) / temperature)


def expected_calibration_error(
    label: np.ndarray,
    probability: np.ndarray,
    weights: np.ndarray,
    ranking: Ranking | None = None,
) -> np.ndarray:
    """Returns the mean distance of share and probability over bins of equal mass.

    By descending probability the images are cut into `NUM_BINS` bins of the same
    weight; images of one probability are spread evenly where a cut divides them.

    Args:
      label: (n,) ALL or HEM.
      probability: (n,) P(ALL).
      weights: (b, n), not negative.
      ranking: of `probability`, if it is known.

    Returns:
      (b,) in [0, 1].
    """
    ranking = ranking or rank(probability)
    return calibration_error(
        ranking.sums(weights), ranking.sums(weights * ((label == ALL) - probability))
    )


def calibration_error(mass: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Returns the same from sums over the images with the highest probabilities.

    Args:
      mass: (b, k + 1) of weights.
      excess: (b, k + 1) of weights times label less probability.
    """
    cuts = at_shares(mass, excess, np.linspace(0, 1, NUM_BINS + 1))
    return np.abs(np.diff(cuts, axis=1)).sum(1) / mass[:, -1]


def temperature(label: np.ndarray, probability: np.ndarray) -> Fitted:
    """Returns the temperature of the least log loss, within 0.05 to 20.

    Args:
      label: (n,) of validation images.
      probability: (n,) P(ALL).
    """
    if reason := _lacks_a_class(label):
        return Fitted(None, reason)
    logits = np.where(label == ALL, 1, -1) * logit(probability)
    # The loss is convex in 1 / T: these tell on which side it has its least.
    if np.sum(logits) <= 0:
        return Fitted(None, "the validation images are told no better than by chance")
    if np.all(logits >= 0):
        return Fitted(None, "no validation image is called wrongly: 0 would be best")

    def descent(value: float) -> float:
        return float(np.sum(logits * special.expit(-logits / value)))

    coldest, hottest = _TEMPERATURES
    if descent(coldest) >= 0:
        return Fitted(coldest)
    if descent(hottest) <= 0:
        return Fitted(hottest)
    found = optimize.root_scalar(descent, bracket=_TEMPERATURES, xtol=1e-12)
    return Fitted(float(found.root))


def youden(label: np.ndarray, probability: np.ndarray) -> Fitted:
    """Returns the threshold of the greatest sensitivity + specificity - 1.

    Of several it is the one nearest to 0.5, then the lower.

    Args:
      label: (n,) of validation images.
      probability: (n,) P(ALL).
    """
    if reason := _lacks_a_class(label):
        return Fitted(None, reason)
    cut, positive, negative = _cuts(label, probability)
    # As whole numbers: equal ones must be found equal.
    gain = positive * np.sum(label == HEM) - negative * np.sum(label == ALL)
    best = cut[gain == gain.max()]
    return Fitted(float(min(best, key=lambda value: (abs(value - 0.5), value))))


def at_sensitivity(label: np.ndarray, probability: np.ndarray, least: float) -> Fitted:
    """Returns the highest threshold whose sensitivity is at least `least`.

    Args:
      label: (n,) of validation images.
      probability: (n,) P(ALL).
      least: in (0, 1].
    """
    if reason := _lacks_a_class(label):
        return Fitted(None, reason)
    cut, positive, _ = _cuts(label, probability)
    enough = positive >= least * np.sum(label == ALL) - 1e-9
    if not enough.any():
        return Fitted(None, "too many ALL images of validation have P(ALL) = 0")
    return Fitted(float(cut[enough].max()))


def bins(probability: np.ndarray) -> np.ndarray:
    """Returns the share of each image in each bin of equal mass.

    Args:
      probability: (n,).

    Returns:
      (n, NUM_BINS) float64, rows sum to 1; the first bin has the lowest probabilities.
      Images of one probability have the same shares.
    """
    ranking = rank(-probability)
    ends = np.concatenate(([0], ranking.ends))
    cuts = np.linspace(0, len(probability), NUM_BINS + 1)
    inside = np.minimum(ends[1:, None], cuts[1:]) - np.maximum(
        ends[:-1, None], cuts[:-1]
    )
    sizes = np.diff(ends)
    result = np.empty((len(probability), NUM_BINS))
    shares = np.maximum(inside, 0) / sizes[:, None]
    result[ranking.order] = np.repeat(shares, sizes, axis=0)
    return result


def _cuts(
    label: np.ndarray, probability: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns thresholds midway between neighbours of 0, the probabilities and 1.

    Returns:
      (k,) float64 thresholds, and (k,) int64 how many ALL and HEM images are above.
    """
    edges = np.unique(np.concatenate(([0.0, 1.0], probability)))
    cut = edges[:-1] + np.diff(edges) / 2
    cut = np.where(cut < edges[1:], cut, edges[:-1])  # the nearest of neighbours
    above = [
        np.sum(label == value)
        - np.searchsorted(np.sort(probability[label == value]), cut, side="right")
        for value in (ALL, HEM)
    ]
    return cut, above[0], above[1]


def _lacks_a_class(label: np.ndarray) -> str | None:
    if not len(label):
        return "there are no validation images"
    for value, name in ((ALL, "ALL"), (HEM, "HEM")):
        if not np.any(label == value):
            return f"no validation image is {name}"
    return None
