"""Bootstrap intervals: how resamples are drawn, and what is told from their figures.

Whole units are drawn, with replacement and as many as there are: groups of patients,
since cells of one patient are no independent witnesses. They are drawn within strata,
units of ALL only, of HEM only and of both, so that no class dies out. A resample is a
row of counts, how often it holds each unit; a figure of it is the figure of images
weighted by them (`weighted`). NaN stands for what is undefined in a resample.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from allcls_jax.data.cells import ALL, HEM

# Weights held at once; many more would leave the processor's cache.
_ELEMENTS = 2**18

# Counts that are kept, 32 MiB, rather than drawn anew for every measure.
_KEPT = 2**22

Draw = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, slots=True)
class Resamples:
    """How units are drawn.

    Attributes:
      units: (u,) str, ascending.
      stratum: (u,) int64, the units it is drawn with.
      number: of resamples.
      seed: of the draw.
      kept: (number, u) float64 counts, None where they would fill the memory.
    """

    units: np.ndarray
    stratum: np.ndarray
    number: int
    seed: int
    kept: np.ndarray | None = None

    def index(self, unit: np.ndarray) -> np.ndarray:
        """Returns where in `units` each of these (n,) stands."""
        return np.searchsorted(self.units, unit)

    def alone(self) -> int:
        """Returns how many units have a stratum each: every resample holds them."""
        return int(np.sum(np.bincount(self.stratum, minlength=3) == 1))

    def draw(self, first: int, last: int) -> np.ndarray:
        """Returns the counts (last - first, u) float64 of these resamples."""
        if self.kept is not None:
            return self.kept[first:last]
        strata = [np.flatnonzero(self.stratum == value) for value in range(3)]
        counts = np.zeros((last - first, len(self.units)))
        for number, row in zip(range(first, last), counts, strict=True):
            rng = np.random.default_rng((self.seed, number))
            for among in strata:
                if len(among):
                    drawn = rng.integers(len(among), size=len(among))
                    row[among] = np.bincount(drawn, minlength=len(among))
        return counts

    def lacks(self, unit: np.ndarray, label: np.ndarray, noun: str) -> dict[int, str]:
        """Returns the classes whose share of an interval cannot be told, and why.

        Args:
          unit: (n,) of the images, as `index` gives them.
          label: (n,) of the images.
          noun: what a unit is called.
        """
        sizes = np.bincount(self.stratum, minlength=3)[self.stratum]
        reasons = {}
        for value, name in ((ALL, "ALL"), (HEM, "HEM")):
            found = np.unique(unit[label == value])
            if len(found) < 2:
                reasons[value] = (
                    f"an interval needs two {noun}s with images of {name}, and there "
                    f"{'is 1' if len(found) else 'is none'}"
                )
            elif np.all(sizes[found] == 1):
                reasons[value] = (
                    f"every {noun} with images of {name} is the only one of its kind "
                    "(of that class alone, or of both), so resamples do not differ"
                )
        return reasons


def resamples(
    unit: np.ndarray, label: np.ndarray, *, number: int, seed: int
) -> Resamples:
    """Returns how to draw the units (n,) str of images with labels (n,)."""
    units, index = np.unique(unit, return_inverse=True)
    has = np.zeros((2, len(units)), dtype=bool)
    for row, value in enumerate((ALL, HEM)):
        has[row, index[label == value]] = True
    result = Resamples(units, 2 * has.all(0) + (~has[0]), number, seed)
    if number * len(units) > _KEPT:
        return result
    return dataclasses.replace(result, kept=result.draw(0, number))


def bootstrap(
    drawn: Resamples, num_images: int, measures: Mapping[str, Draw]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns what each measure gives for every resample, all of the same ones.

    Args:
      drawn: how to draw.
      num_images: that a measure weighs at once, at the most.
      measures: key → function of counts (b, u) to name → (b, …).

    Returns:
      Key → name → (number, …).
    """

    def measured(first: int) -> dict[str, Mapping[str, np.ndarray]]:
        counts = drawn.draw(first, min(first + some, drawn.number))
        return {key: measure(counts) for key, measure in measures.items()}

    some = max(1, _ELEMENTS // max(num_images, len(drawn.units)))
    # glibc gives large blocks back to the system at once, which clears each anew for
    # the next array: a third of the time. Freeing one this large teaches it to keep
    # them.
    np.empty(31 * 2**17)
    # numpy lets go of the interpreter while it computes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(measured, range(0, drawn.number, some)))
    return {
        key: {
            name: np.concatenate([part[key][name] for part in parts])
            for name in parts[0][key]
        }
        for key in measures
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A percentile interval, or why there is none.

    Attributes:
      low: lower end, or None.
      high: upper end, or None.
      reason: why there is no interval.
      left_out: number of resamples in which the figure is undefined.
    """

    low: float | None
    high: float | None
    reason: str | None = None
    left_out: int = 0


def interval(samples: np.ndarray, confidence: float) -> Interval:
    """Returns the interval that holds the middle `confidence` of samples (b,).

    There is none where the figure is undefined in more than half of the resamples, or
    the same in all: an interval without width would look certain.
    """
    defined = samples[np.isfinite(samples)]
    left_out = len(samples) - len(defined)
    if left_out > len(samples) / 2:
        return Interval(
            None,
            None,
            f"it is undefined in {left_out:,} of {len(samples):,} resamples",
            left_out,
        )
    if np.ptp(defined) < 1e-9:
        return Interval(
            None,
            None,
            f"it is {defined[0]:.4f} in every resample, which tells nothing of how "
            "certain it is",
            left_out,
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return Interval(float(low), float(high), None, left_out)


def band(
    samples: np.ndarray, confidence: float
) -> tuple[list[float | None], list[float | None]]:
    """Returns the ends of the intervals of samples (b, m), those without width too."""
    tail = (1 - confidence) / 2
    ends: list[list[float | None]] = [[], []]
    for column in samples.T:
        defined = column[np.isfinite(column)]
        few = len(defined) < len(column) / 2
        for end, share in zip(ends, (tail, 1 - tail), strict=True):
            end.append(None if few else float(np.quantile(defined, share)))
    return ends[0], ends[1]
