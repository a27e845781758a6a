"""How well nuclei are found, against drawn fields where each one is known."""

from typing import NamedTuple

import numpy as np

from allcls_jax.data.synthetic_fields import Field
from allcls_jax.serving.segmentation.nuclei import Segmentation

# A nucleus that comes so near to the field's edge, in pixels, counts as cut by it.
_EDGE = 2


class Score(NamedTuple):
    """Of whole nuclei; what is found of those cut by the edge is passed over."""

    hits: int
    false: int
    missed: int
    overlaps: list[float]  # intersection over union of the hits

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(1, 2 * self.hits + self.false + self.missed)


def score(field: Field, found: Segmentation, *, least: float = 0.5) -> Score:
    """Compares by intersection over union, above which at most one can match."""
    truth = field.nuclei
    count = int(truth.max())
    areas = np.bincount(truth.ravel(), minlength=count + 1)
    ends = (truth[:_EDGE], truth[-_EDGE:], truth[:, :_EDGE], truth[:, -_EDGE:])
    cut = {int(n) for end in ends for n in np.unique(end)} - {0}
    whole = {n for n in range(1, count + 1) if areas[n] and n not in cut}
    overlaps = []
    false = 0
    for nucleus in found.nuclei:
        shared = np.bincount(truth[nucleus.box][nucleus.mask], minlength=count + 1)
        union = nucleus.area + areas - shared
        ratio = np.where(areas > 0, shared / np.maximum(union, 1), 0)
        ratio[0] = 0
        best = int(np.argmax(ratio))
        if ratio[best] < least:
            false += 1
        elif best in whole:
            overlaps.append(float(ratio[best]))
    hits = len(overlaps)
    return Score(hits, false, len(whole) - hits, overlaps)


def together(scores: list[Score]) -> Score:
    """Returns the sums over fields."""
    hits, false, missed, overlaps = zip(*scores, strict=True)
    return Score(sum(hits), sum(false), sum(missed), [o for s in overlaps for o in s])
