"""What is fitted on the validation rows of each run, and what it realises on its test.

No test row takes part in a fit, no validation row in a figure. A temperature or
threshold counts as given once it is fitted: the intervals do not hold the uncertainty
of the fit.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from allcls_jax.data.cells import ALL
from allcls_jax.data.splits import Split
from allcls_jax.evaluation import calibration as calibrating
from allcls_jax.evaluation import views, weighted
from allcls_jax.evaluation.calibration import Fitted
from allcls_jax.evaluation.metrics import CALL_NAMES, THRESHOLD, confusion_matrix
from allcls_jax.evaluation.predictions import Predictions, Run
from allcls_jax.evaluation.ranking import rank
from allcls_jax.evaluation.uncertainty import band, bootstrap
from allcls_jax.evaluation.views import Entry, Given

THRESHOLD_NAMES = tuple(name for name in CALL_NAMES if name != "mcc")

# Name in `calibration` → name of the figure.
CALIBRATION_NAMES = {
    "brier": "brier",
    "ece": "ece",
    "slope": "calibration_slope",
    "intercept": "calibration_intercept",
    "log_loss": "log_loss",
}

_SENSITIVITY = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class Fits:
    """What was fitted for each run.

    Attributes:
      temperature: of every run.
      thresholds: name → of every run.
    """

    temperature: Mapping[Run, Fitted]
    thresholds: Mapping[str, Mapping[Run, Fitted]]

    def warnings(self) -> list[str]:
        """Returns for how many runs no temperature could be fitted, and why."""
        reasons = Counter(
            found.reason for found in self.temperature.values() if found.value is None
        )
        return [
            f"{count} of {len(self.temperature)} run(s) have no temperature, their "
            f"probabilities stay as they are: {reason}"
            for reason, count in reasons.items()
        ]


def fit(predictions: Predictions) -> Fits:
    """Returns temperature and thresholds of every run, from validation rows alone."""
    validation = {
        run: rows.of(Split.VALIDATION)
        for run, rows in predictions.runs()
        if np.any(rows.split == Split.TEST)
    }

    def of_each(
        fitted: Callable[[np.ndarray, np.ndarray], Fitted],
    ) -> dict[Run, Fitted]:
        return {
            run: fitted(rows.label, rows.probability)
            for run, rows in validation.items()
        }

    return Fits(
        of_each(calibrating.temperature),
        {
            f"{THRESHOLD}": of_each(lambda *_: Fitted(THRESHOLD)),
            "youden": of_each(calibrating.youden),
            f"sensitivity_{_SENSITIVITY}": of_each(
                lambda label, probability: calibrating.at_sensitivity(
                    label, probability, _SENSITIVITY
                )
            ),
        },
    )


def calibrated(given: Given, fits: Fits) -> list[Predictions]:
    """Returns the test rows of each pass with each run's temperature applied."""
    test = given.test
    probability = np.empty(len(test))
    for run, mask in _masks(test):
        probability[mask] = calibrating.calibrate(
            test.probability[mask], fits.temperature[run].value or 1.0
        )
    return [
        dataclasses.replace(rows, probability=part)
        for rows, part in zip(given.passes, given.split(probability), strict=True)
    ]


def calibration(
    given: Given,
    fits: Fits,
    after: Sequence[Predictions],
    before: Mapping[str, Entry],
) -> dict[str, Any]:
    """Returns calibration before and after the temperatures.

    Args:
      given: the test rows.
      fits: their temperatures.
      after: from `calibrated`.
      before: the figures by image, with the log loss.
    """
    view = given.view(tuple(CALIBRATION_NAMES.values()), passes=after)
    found = given.entries({"after": view})["after"]
    return {
        "temperature": _told(fits.temperature),
        "before": {key: before[name] for key, name in CALIBRATION_NAMES.items()},
        "after": {key: found[name] for key, name in CALIBRATION_NAMES.items()},
        "reliability_before": _reliability(given, given.passes),
        "reliability_after": _reliability(given, after),
    }


def thresholds(given: Given, fits: Fits) -> list[dict[str, Any]]:
    """Returns what each threshold realises on the test rows.

    `confusion_matrix` is that of the first pass.
    """
    seen, result = {}, []
    for name, fitted in fits.thresholds.items():
        entry: dict[str, Any] = {
            "name": name,
            "fitted_on": "-" if name == f"{THRESHOLD}" else "validation patients",
            "values": _told(fitted),
        }
        result.append(entry)
        missing = [found.reason for found in fitted.values() if found.value is None]
        if missing:
            reason = f"the threshold is undefined: {missing[0]}"
            entry["figures"] = views.undefined(THRESHOLD_NAMES, reason)
            entry["confusion_matrix"] = None
            continue
        called = np.empty(len(given.test), dtype=bool)
        for run, mask in _masks(given.test):
            called[mask] = given.test.probability[mask] > fitted[run].value
        calls = given.split(called)
        seen[name] = given.view(THRESHOLD_NAMES, called=calls)
        entry["confusion_matrix"] = confusion_matrix(given.passes[0].label, calls[0])
    entries = given.entries(seen)
    for entry in result:
        entry.setdefault("figures", entries.get(entry["name"]))
    return result


def abstention(given: Given, after: Sequence[Predictions]) -> list[dict[str, Any]]:
    """Returns the error among the images that are called with the most confidence.

    Args:
      given: the test rows.
      after: from `calibrated`: confidences of several runs can be compared.
    """
    # As the model calls them: a temperature moves no image across 0.5.
    called = [rows.probability > THRESHOLD for rows in given.passes]
    passes = [
        dataclasses.replace(one, ranking=rank(np.abs(one.probability - 0.5)))
        for one in given.view(passes=after, called=called).passes
    ]

    def error(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = [
            weighted.errors_at_coverage(one, one.weights(counts)) for one in passes
        ]
        return {"": np.mean(found, axis=0)}

    point = error(np.ones((1, len(given.drawn.units))))[""][0]
    size = max(len(rows) for rows in after)
    low, high = _band(given, bootstrap(given.drawn, size, {"": error})[""][""])
    return [
        {"coverage": coverage, "error": value, "low": bottom, "high": top}
        for coverage, value, bottom, top in zip(
            weighted.COVERAGES.tolist(), point.tolist(), low, high, strict=True
        )
    ]


def _reliability(
    given: Given, passes: Sequence[Predictions]
) -> list[dict[str, float | None]]:
    """Returns the share of ALL in bins of equal mass, the predictions of passes pooled.

    The bins are those of all images in every resample.
    """
    probability = np.concatenate([rows.probability for rows in passes])
    positive = (given.test.label == ALL)[:, None]
    shares = calibrating.bins(probability)
    # One row of sums for each group.
    unit = given.drawn.index(given.test.group)
    mass, found = (np.zeros((len(given.drawn.units), shares.shape[1])) for _ in "mf")
    np.add.at(mass, unit, shares)
    np.add.at(found, unit, shares * positive)

    def share(counts: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore"):
            return {"": (counts @ found) / (counts @ mass)}

    low, high = _band(given, bootstrap(given.drawn, 1, {"": share})[""][""])
    count = shares.sum(0)
    mean = probability @ shares / count
    return [
        {
            "mean_probability": float(mean[i]),
            "share_all": float(found.sum(0)[i] / count[i]),
            "low": low[i],
            "high": high[i],
            "count": round(float(count[i]) / len(passes), 1),
        }
        for i in range(shares.shape[1])
    ]


def _band(
    given: Given, samples: np.ndarray
) -> tuple[Sequence[float | None], Sequence[float | None]]:
    """Returns the ends of intervals (m,), None where groups do not tell any."""
    unit = given.drawn.index(given.test.group)
    if given.drawn.lacks(unit, given.test.label, "group"):
        nothing = [None] * samples.shape[1]
        return nothing, nothing
    return band(samples, given.confidence)


def _masks(test: Predictions) -> Iterator[tuple[Run, np.ndarray]]:
    """Yields each run with the mask (n,) of its rows."""
    for run, _ in test.runs():
        yield (
            run,
            (test.repeat == run.repeat)
            & (test.test_fold == run.test_fold)
            & (test.seed == run.seed),
        )


def _told(fitted: Mapping[Run, Fitted]) -> list[dict[str, Any]]:
    return [
        {**run._asdict(), "value": found.value}
        | ({} if found.reason is None else {"reason": found.reason})
        for run, found in fitted.items()
    ]
