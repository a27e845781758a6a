"""One way to look at the predictions: its point figures and their intervals.

A view holds the images of each pass. Every figure is computed in each pass and
averaged; a resample is the same in every pass, so that several seeds of the same
patients are never mistaken for more patients.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from allcls_jax.data.cells import ALL, HEM
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import metrics, weighted
from allcls_jax.evaluation.metrics import NAMES, Undefined
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.evaluation.uncertainty import Resamples, bootstrap, interval, resamples
from allcls_jax.evaluation.weighted import Images

Entry = dict[str, Any]  # "value", "low", "high" and, where one is None, "reason"


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """Images of each pass, seen in one way.

    Attributes:
      passes: at least one, none of them empty.
      names: the figures to compute.
      prevalence: share of ALL that PPV and NPV are stated for.
    """

    passes: Sequence[Images]
    names: Sequence[str]
    prevalence: float

    @property
    def size(self) -> int:
        """The most images of a pass."""
        return max(len(given.label) for given in self.passes)

    def values(self) -> dict[str, float | Undefined]:
        """Returns scikit-learn's figures, averaged over the passes."""
        measured = [
            metrics.measure(
                given.label,
                given.probability,
                called=given.called,
                weight=given.scale,
                names=self.names,
                prevalence=self.prevalence,
            )
            for given in self.passes
        ]
        return {name: mean([found[name] for found in measured]) for name in self.names}

    def draw(
        self, counts: np.ndarray, extra: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Returns the figures, and extra ones, of resamples (b, u) in the same way."""
        names = (*self.names, *extra)
        found = [
            weighted.figures(
                given, given.weights(counts), names, prevalence=self.prevalence
            )
            for given in self.passes
        ]
        return {name: np.mean([one[name] for one in found], axis=0) for name in names}

    def entries(
        self,
        drawn: Resamples,
        samples: Mapping[str, np.ndarray],
        *,
        confidence: float,
        noun: str = "group",
    ) -> dict[str, Entry]:
        """Returns each figure with its interval.

        Args:
          drawn: how the samples were drawn.
          samples: name → (number,) from `draw`.
          confidence: of the interval.
          noun: what a unit is called.
        """
        lacks = drawn.lacks(
            np.concatenate([given.unit for given in self.passes]),
            np.concatenate([given.label for given in self.passes]),
            noun,
        )
        return {
            name: entry(name, value, samples[name], lacks, confidence)
            for name, value in self.values().items()
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """What every section of an assessment is computed from.

    Attributes:
      test: the test rows, pass by pass.
      passes: the same rows, each pass by itself.
      drawn: how their groups are drawn.
      prevalence: share of ALL that PPV and NPV are stated for.
      confidence: of the intervals.
    """

    test: Predictions
    passes: Sequence[Predictions]
    drawn: Resamples
    prevalence: float
    confidence: float

    def split(self, column: np.ndarray) -> list[np.ndarray]:
        """Returns a column of `test`, each pass by itself."""
        ends = np.cumsum([len(rows) for rows in self.passes])
        return np.split(column, ends[:-1])

    def view(
        self,
        names: Sequence[str] = NAMES,
        *,
        passes: Sequence[Predictions] | None = None,
        called: Sequence[np.ndarray] | None = None,
        patients_equal: bool = False,
    ) -> View:
        """Returns the images of these passes, by default of all test rows."""
        given = by_image(
            self.passes if passes is None else passes,
            self.drawn,
            called=called,
            patients_equal=patients_equal,
        )
        return View(given, names, self.prevalence)

    def entries(self, seen: Mapping[str, View]) -> dict[str, dict[str, Entry]]:
        """Returns the figures of several views with their intervals over groups."""
        size = max(view.size for view in seen.values())
        samples = bootstrap(
            self.drawn, size, {key: view.draw for key, view in seen.items()}
        )
        return {
            key: view.entries(self.drawn, samples[key], confidence=self.confidence)
            for key, view in seen.items()
        }


def given(
    predictions: Predictions,
    *,
    prevalence: float,
    num_resamples: int,
    seed: int,
    confidence: float,
) -> Given:
    """Returns what an assessment needs; arguments and errors are those of `assess`."""
    predictions.check()
    for name, value in (("prevalence", prevalence), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"{name} = {value}: give a number between 0 and 1")
    if num_resamples < 100:
        raise InputError(
            f"num_resamples = {num_resamples}: too few for an interval; give at least "
            "100, better 2000"
        )
    if seed < 0:
        raise InputError(f"seed = {seed}: give 0 or more")
    test = predictions.of(Split.TEST)
    test = test.take(np.lexsort((test.seed, test.repeat)))
    return Given(
        test,
        [rows for _, rows in test.passes()],
        resamples(test.group, test.label, number=num_resamples, seed=seed),
        prevalence,
        confidence,
    )


def mean(values: Sequence[float | Undefined]) -> float | Undefined:
    """Returns the mean over passes; undefined where one is."""
    for value in values:
        if isinstance(value, Undefined):
            return value
    return float(np.mean([value for value in values if isinstance(value, float)]))


def by_image(
    passes: Sequence[Predictions],
    drawn: Resamples,
    *,
    unit: str = "group",
    called: Sequence[np.ndarray] | None = None,
    patients_equal: bool = False,
) -> list[Images]:
    """Returns the images of each pass, weighted by the counts of units.

    Args:
      passes: test rows of each.
      drawn: how the units are drawn.
      unit: the column that names them.
      called: of each pass (n,) bool; by default at `metrics.THRESHOLD`.
      patients_equal: whether the images of a patient share one weight.
    """
    result = []
    for number, rows in enumerate(passes):
        scale = None
        if patients_equal:
            _, index, count = np.unique(
                rows.patient, return_inverse=True, return_counts=True
            )
            scale = 1 / count[index]
        result.append(
            weighted.images(
                rows.label,
                rows.probability,
                rows.probability > metrics.THRESHOLD
                if called is None
                else called[number],
                drawn.index(getattr(rows, unit)),
                scale,
            )
        )
    return result


def by_patient(passes: Sequence[Predictions], drawn: Resamples) -> list[Images]:
    """Returns the patients of each pass as images, each with its mean probability.

    Patients with images of both classes have no label and are left out; where nothing
    is left, there are no passes.
    """
    result = []
    for rows in passes:
        _, first, index, count = np.unique(
            rows.patient, return_index=True, return_inverse=True, return_counts=True
        )
        share = np.bincount(index, rows.label == ALL) / count
        probability = np.bincount(index, rows.probability) / count
        clear = np.flatnonzero((share == 0) | (share == 1))
        if not len(clear):
            return []
        # A sum of many may end a rounding error above 1.
        probability = np.clip(probability[clear], 0, 1)
        result.append(
            weighted.images(
                np.where(share[clear] == 1, ALL, HEM),
                probability,
                probability > metrics.THRESHOLD,
                drawn.index(rows.group[first[clear]]),
            )
        )
    return result


def undefined(names: Sequence[str], reason: str) -> dict[str, Entry]:
    """Returns entries of figures that none can compute."""
    return {name: {"value": None, **NO_INTERVAL, "reason": reason} for name in names}


NO_INTERVAL: dict[str, None] = {"low": None, "high": None}


def entry(
    name: str,
    value: float | Undefined,
    samples: np.ndarray,
    lacks: Mapping[int, str],
    confidence: float,
) -> Entry:
    """Returns a figure with its interval.

    Args:
      name: of the figure; tells which classes it is one of.
      value: the figure.
      samples: (b,) of it.
      lacks: from `Resamples.lacks`.
      confidence: of the interval.
    """
    if isinstance(value, Undefined):
        return {"value": None, **NO_INTERVAL, "reason": value.reason}
    for label in {"sensitivity": (ALL,), "specificity": (HEM,)}.get(name, (ALL, HEM)):
        if label in lacks:
            return {"value": value, **NO_INTERVAL, "reason": lacks[label]}
    found = interval(samples, confidence)
    result: Entry = {"value": value, "low": found.low, "high": found.high}
    if found.reason:
        result["reason"] = found.reason
    if found.left_out:
        result["left_out"] = found.left_out
    return result
