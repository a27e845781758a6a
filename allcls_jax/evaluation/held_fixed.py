"""What is left of the score where a cell's area is held fixed.

ALL cells are larger than normal ones, so that a network may call large what is to be
called ALL. Two ways to hold area fixed: to compare only cells of one third by area, and
to take out of a correlation what area explains of it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from allcls_jax.data.cells import ALL
from allcls_jax.evaluation import metrics, views, weighted
from allcls_jax.evaluation.breakdown import Subgroup, thirds_by_area
from allcls_jax.evaluation.metrics import Undefined
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.evaluation.ranking import dot
from allcls_jax.evaluation.uncertainty import bootstrap
from allcls_jax.evaluation.views import Entry, Given
from allcls_jax.evaluation.weighted import Images

THIRD_NAMES = ("auroc", "weighted_f1")
CORRELATIONS = ("correlation", "correlation_with_area", "partial_correlation")

# Of a variance that was 1 over all images, or of what another quantity leaves of it:
# less is a rounding error.
_NOTHING = 1e-9


def within_area(given: Given) -> dict[str, Entry]:
    """Returns figures with area held fixed, with intervals over groups.

    Returns:
      `auroc` and `weighted_f1`: in each third of the test images by area, averaged. The
      thirds are cut once, and weigh as much as they have pairs of an ALL and a HEM
      image, or images. `correlation` of class and P(ALL), `correlation_with_area` of
      class and area, and `partial_correlation` of class and P(ALL) given area: all are
      Spearman's, so that neither calibration nor the logarithm of either matters. In
      resamples the ranks stay those among all test images and are weighted, which
      differs little from ranking anew.
    """
    thirds = list(thirds_by_area(given.test))
    passes = [
        _pass(given, rows, masks)
        for rows, *masks in zip(
            given.passes, *(given.split(third.rows) for third in thirds), strict=True
        )
    ]

    def draw(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = [one.figures(counts) for one in passes]
        return {
            name: np.mean([figures[name] for figures in found], axis=0)
            for name in found[0]
        }

    drawn, test = given.drawn, given.test
    values = draw(np.ones((1, len(drawn.units))))
    size = max(len(rows) for rows in given.passes)
    samples = bootstrap(drawn, size, {"": draw})[""]
    lacks = drawn.lacks(drawn.index(test.group), test.label, "group")
    result = {}
    for name in (*THIRD_NAMES, *CORRELATIONS):
        reason = _lacks(name, given, thirds)
        if reason is None and np.isnan(values[name][0]):
            reason = "area alone tells the class or P(ALL): nothing else is left"
        value = Undefined(reason) if reason else float(values[name][0])
        result[name] = views.entry(name, value, samples[name], lacks, given.confidence)
    return result


@np.errstate(invalid="ignore", divide="ignore")  # NaN tells
def correlations(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `CORRELATIONS` under many weightings of the same images.

    The partial correlation is that of Yule, "On the Theory of Correlation for any
    Number of Variables" (1907): (r12 - r13 r23) / sqrt((1 - r13²) (1 - r23²)).

    Args:
      values: (3, n) float64 of class, prediction and area, each of mean 0 and, unless
        constant, variance 1.
      weights: (b, n), not negative.

    Returns:
      Name → (b,), NaN where undefined.
    """
    total = weights.sum(1)
    mean = [dot(weights, value) / total for value in values]

    def covariance(i: int, j: int) -> np.ndarray:
        return dot(weights, values[i] * values[j]) / total - mean[i] * mean[j]

    scale = [np.sqrt(_or_nan(covariance(i, i))) for i in range(3)]
    with_prediction, with_area, of_both = (
        covariance(i, j) / (scale[i] * scale[j]) for i, j in ((0, 1), (0, 2), (1, 2))
    )
    left = _or_nan(1 - with_area**2) * _or_nan(1 - of_both**2)
    partial = (with_prediction - with_area * of_both) / np.sqrt(left)
    return dict(zip(CORRELATIONS, (with_prediction, with_area, partial), strict=True))


@dataclasses.dataclass(frozen=True, slots=True)
class _Pass:
    """The images of one pass.

    Attributes:
      whole: all of them.
      thirds: of them by area; none where there are no thirds.
      values: as for `correlations`, ranks.
    """

    whole: Images
    thirds: Sequence[Images]
    values: np.ndarray

    def figures(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Returns all figures (b,) of counts (b, u), NaN where undefined."""
        found = correlations(self.values, self.whole.weights(counts))
        sums = {name: np.zeros(len(counts)) for name in THIRD_NAMES}
        mass = {name: np.zeros(len(counts)) for name in THIRD_NAMES}
        for third in self.thirds:
            weights = third.weights(counts)
            # Neither of these looks at the prevalence.
            each = weighted.figures(third, weights, THIRD_NAMES, prevalence=0.5)
            of_all = dot(weights, (third.label == ALL).astype(np.float64))
            images = weights.sum(1)
            share = {"auroc": of_all * (images - of_all), "weighted_f1": images}
            for name in THIRD_NAMES:
                sums[name] += share[name] * each[name]
                mass[name] += share[name]
        with np.errstate(invalid="ignore"):
            return found | {name: sums[name] / mass[name] for name in THIRD_NAMES}


def _pass(given: Given, rows: Predictions, masks: Sequence[np.ndarray]) -> _Pass:
    ranks = np.stack(
        [stats.rankdata(x) for x in (rows.label == ALL, rows.probability, rows.area)]
    )
    ranks -= ranks.mean(1, keepdims=True)
    deviation = ranks.std(1, keepdims=True)
    values = np.divide(ranks, deviation, out=np.zeros_like(ranks), where=deviation > 0)
    whole, *thirds = views.by_image(
        [rows, *(rows.take(mask) for mask in masks if mask.any())], given.drawn
    )
    return _Pass(whole, thirds, values)


def _lacks(name: str, given: Given, thirds: Sequence[Subgroup]) -> str | None:
    """Returns why a figure is undefined, or None."""
    for rows in given.passes:
        if reason := metrics.lacks("auroc", rows.label):
            return reason
        if name in CORRELATIONS:
            if name != "correlation" and np.ptp(rows.area) == 0:
                return "every cell has the same area"
            if name != "correlation_with_area" and np.ptp(rows.probability) == 0:
                return "every image has the same P(ALL)"
    if name in CORRELATIONS:
        return None
    if not thirds:
        return "the cells are too few or too alike in area for thirds"
    for third in thirds:
        for rows, mask in zip(given.passes, given.split(third.rows), strict=True):
            if reason := metrics.lacks(name, rows.label[mask]):
                return f"{third.name}: {reason}"
    return None


def _or_nan(value: np.ndarray) -> np.ndarray:
    return np.where(value > _NOTHING, value, np.nan)
