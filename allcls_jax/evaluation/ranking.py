"""Images sorted by score, and sums over the first of them under many weightings.

A weighting is a row of weights (b, n), such as how often a resample holds each image.
Images of the same score make one block and are never divided by their order.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Ranking:
    """n images by descending score, in k blocks of the same score.

    Attributes:
      order: (n,) int64 rows of the images.
      ends: (k,) int64, how many images stand in each block and the ones before it.
    """

    order: np.ndarray
    ends: np.ndarray

    def sums(self, weighted: np.ndarray) -> np.ndarray:
        """Returns the sums over the first 0, 1, …, k blocks.

        Args:
          weighted: (b, n) weights, or weights times a value, in the images' own order.

        Returns:
          (b, k + 1) float64.
        """
        sums = np.empty((len(weighted), len(self.order) + 1))
        sums[:, 0] = 0
        np.cumsum(weighted.take(self.order, axis=1), axis=1, out=sums[:, 1:])
        if len(self.ends) == len(self.order):
            return sums
        return sums.take(np.concatenate(([0], self.ends)), axis=1)


def rank(score: np.ndarray) -> Ranking:
    """Returns the ranking of scores (n,), the highest first."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=-np.inf)) + 1
    return Ranking(order, ends)


def at_shares(weight: np.ndarray, value: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Returns sums over the first part of the images that has a share of the weight.

    A block that the share divides counts in part, so that nothing hangs on the order
    of images with the same score.

    Args:
      weight: (b, k + 1) from `Ranking.sums` of the weights.
      value: (b, k + 1) from `Ranking.sums` of weights times a value.
      shares: (m,) in [0, 1].

    Returns:
      (b, m) float64.
    """
    result = np.empty((len(weight), len(shares)))
    for row, (mass, sums) in enumerate(zip(weight, value, strict=True)):
        result[row] = np.interp(shares * mass[-1], mass, sums)
    return result


def dot(weights: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Returns the sums (b,) of weights (b, n) times a value, (n,) or (b, n).

    Not by BLAS, which wakes a thread on every core for each of these small products and
    is ten times slower for it where the cores have other work.
    """
    return np.einsum("bn,n->b" if value.ndim == 1 else "bn,bn->b", weights, value)
