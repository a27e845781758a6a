"""Calibration slope and intercept, under many weightings of the same images at once.

They follow Cox (Biometrika 45, 1958) as Van Calster et al. (J Clin Epidemiol 74, 2016)
name them. The slope is that of a logistic regression of the label on the logit of
P(ALL); below 1 the probabilities are too extreme. The intercept is of that regression
with the slope held at 1, "calibration in the large"; below 0 there are fewer ALL than
the probabilities say. Weights are (b, n) and not negative; NaN is returned where a
figure is undefined.
"""

import numpy as np
from scipy import special

from allcls_jax.data.cells import ALL, HEM
from allcls_jax.evaluation.ranking import Ranking, dot, rank

# A softmax in float32 gives 1 for all that is nearer to 1 than this. Which logit such a
# probability had nobody knows; it is taken to be the least one, 16.6.
EPSILON = 2.0**-24

# Of the last of Newton's steps; what is then left is about its square.
_TOLERANCE = 1e-7

# The first steps are made with these in place of images; two or three then suffice.
_NUM_BINS = 128


def logit(probability: np.ndarray) -> np.ndarray:
    """Returns log(p / (1 - p)) of p clipped to `EPSILON` … 1 - `EPSILON`."""
    return special.logit(np.clip(probability, EPSILON, 1 - EPSILON))


def slope(
    label: np.ndarray,
    probability: np.ndarray,
    weights: np.ndarray,
    ranking: Ranking | None = None,
) -> np.ndarray:
    """Returns calibration slopes.

    Args:
      label: (n,) ALL or HEM.
      probability: (n,) P(ALL).
      weights: (b, n).
      ranking: of `probability`, if it is known.

    Returns:
      (b,), NaN where a class is missing or some cut of the logit separates the classes:
      then no slope is the likeliest.
    """
    logits = logit(probability)
    order = (ranking or rank(probability)).order
    exists = _overlap(label, logits, weights, order)
    result = np.full(len(weights), np.nan)
    if not exists.any():
        return result
    if not exists.all():
        weights = weights[exists]
    spread = np.std(logits)
    standard = (logits - np.mean(logits)) / spread
    positive = (label == ALL).astype(np.float64)
    target = np.stack([dot(weights, positive), dot(weights, positive * standard)])
    begin = np.zeros((2, len(weights)))
    binned = _binned(standard, weights, order)
    if binned is not None:
        begin = _newton(*binned, target, begin)
    fitted = _newton(standard, weights, target, begin)[1]
    for damped in (False, True):
        if len(again := np.flatnonzero(np.isnan(fitted))):
            begin = np.zeros((2, len(again)))
            fitted[again] = _newton(
                standard,
                weights[again],
                target[:, again],
                begin,
                limit=1000,
                damped=damped,
            )[1]
    result[exists] = fitted / spread
    return result


def intercept(
    label: np.ndarray,
    probability: np.ndarray,
    weights: np.ndarray,
    ranking: Ranking | None = None,
) -> np.ndarray:
    """Returns calibration intercepts.

    Args:
      label: (n,) ALL or HEM.
      probability: (n,) P(ALL).
      weights: (b, n).
      ranking: of `probability`, if it is known.

    Returns:
      (b,), NaN where a class is missing.
    """
    logits = logit(probability)
    order = (ranking or rank(probability)).order
    positive = dot(weights, (label == ALL).astype(np.float64))
    both = (positive > 0) & (dot(weights, (label == HEM).astype(np.float64)) > 0)
    found = np.zeros(len(weights))
    binned = _binned(logits, weights, order)
    if binned is not None:
        found = _shift(*binned, positive, both, found)
    return np.where(both, _shift(logits, weights, positive, both, found), np.nan)


def _overlap(
    label: np.ndarray, logits: np.ndarray, weights: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """Returns (b,) whether the logits of the classes overlap: a slope then exists.

    `order` (n,) has the highest logit first.
    """
    highest, lowest = {}, {}
    for value in (ALL, HEM):
        among = order[label[order] == value]
        if not len(among):
            return np.zeros(len(weights), dtype=bool)
        drawn = weights.take(among, axis=1) > 0
        some = drawn.any(1)
        highest[value] = np.where(some, logits[among[drawn.argmax(1)]], -np.inf)
        last = len(among) - 1 - drawn[:, ::-1].argmax(1)
        lowest[value] = np.where(some, logits[among[last]], np.inf)
    return (highest[HEM] > lowest[ALL]) & (highest[ALL] > lowest[HEM])


def _binned(
    regressor: np.ndarray, weights: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns means of the regressor (k,) in bins, and weights (b, k) of them.

    Steps made with these begin the search at a tenth of its price. None of few images.
    """
    if len(regressor) < 4 * _NUM_BINS:
        return None
    first = np.linspace(0, len(order), _NUM_BINS, endpoint=False).astype(np.int64)
    sizes = np.diff(first, append=len(order))
    return (
        np.add.reduceat(regressor[order], first) / sizes,
        np.add.reduceat(weights.take(order, axis=1), first, axis=1),
    )


def _newton(
    regressor: np.ndarray,
    weights: np.ndarray,
    target: np.ndarray,
    begin: np.ndarray,
    *,
    limit: int = 15,
    damped: bool = False,
) -> np.ndarray:
    """Returns (2, b) constants and slopes by Newton's method, NaN where unsettled.

    Args:
      regressor: (n,), about standardised.
      weights: (b, n) under each of which the likeliest slope is finite.
      target: (2, b) sums over ALL of weights, and of weights times regressor.
      begin: (2, b).
      limit: of the number of steps; nearly always five suffice.
      damped: shortens the steps as the loss's self-concordance asks for: they never run
        away, and may take long.
    """
    square = regressor**2
    reach = np.max(np.abs(regressor))
    found = begin.copy()
    settled = np.zeros(len(weights), dtype=bool)
    with np.errstate(all="ignore"):  # where it runs away; NaN tells
        for _ in range(limit):
            called = np.multiply.outer(-found[1], regressor)
            called -= found[0][:, None]
            np.exp(called, out=called)
            called += 1
            np.reciprocal(called, out=called)
            weighted = weights * called
            first = target - (weighted.sum(1), dot(weighted, regressor))
            called *= weighted
            weighted -= called
            second = weighted.sum(1), dot(weighted, regressor), dot(weighted, square)
            steps = np.stack(
                [
                    second[2] * first[0] - second[1] * first[1],
                    second[0] * first[1] - second[1] * first[0],
                ]
            )
            steps /= second[0] * second[2] - second[1] ** 2
            if damped:
                length = np.abs(steps[0]) + np.abs(steps[1]) * reach
                steps *= np.where(length > 0, _damp(length) / length, 1)
            found += steps
            settled = np.max(np.abs(steps), axis=0) < _TOLERANCE * (
                1 + np.abs(found[1])
            )
            if settled.all():
                break
    return np.where(settled, found, np.nan)


def _shift(
    logits: np.ndarray,
    weights: np.ndarray,
    positive: np.ndarray,
    both: np.ndarray,
    begin: np.ndarray,
) -> np.ndarray:
    """Returns constants (b,) that added to the logits give as much ALL as there is.

    Args:
      logits: (n,).
      weights: (b, n).
      positive: (b,) weight of ALL.
      both: (b,) whether there is an answer.
      begin: (b,).
    """
    odds = np.exp(-logits)  # of HEM
    found = begin.copy()
    for _ in range(1000):
        called = np.multiply.outer(np.exp(-found), odds)
        called += 1
        np.reciprocal(called, out=called)
        weighted = weights * called
        first = weighted.sum(1)
        second = first - dot(weighted, called)
        step = _damp(np.where(both, (positive - first) / np.where(both, second, 1), 0))
        found += step
        if np.max(np.abs(step), initial=0) < _TOLERANCE:
            break
    return found


def _damp(step: np.ndarray) -> np.ndarray:
    """Returns steps shortened from d to log(1 + d)."""
    return np.sign(step) * np.log1p(np.abs(step))
