"""Our own folds: groups of patients kept whole, classes and images balanced.

scikit-learn's `StratifiedGroupKFold` always places the largest groups first and so
draws nearly the same folds whatever its seed; here each repeat is a different drawing,
the best balanced of many.
"""

import numpy as np

from allcls_jax.data.cells import ALL, HEM
from allcls_jax.errors import InputError

# Drawings of which the best balanced is taken; of many groups fewer, which fill the
# folds evenly anyway: this many groups are placed in all.
_DRAWINGS = 200
_PLACED = 40_000

# How freely a group's turn departs from its size: the largest still come early.
_FREEDOM = 0.6


def draw_folds(
    label: np.ndarray, group: np.ndarray, num_folds: int, *, repeat: int
) -> np.ndarray:
    """Returns a fold for each image.

    Args:
      label: (n,) ALL or HEM.
      group: (n,) str; no group is divided.
      num_folds: at least 2.
      repeat: which drawing; the same one gives the same folds.

    Returns:
      (n,) int64 in 0 … num_folds - 1. Each fold has about its share of the images and
      of the groups of each class. Wherever a drawing allows it each can be tested: both
      classes stand in it, and outside it in two groups each.

    Raises:
      InputError: if a class has fewer groups than folds.
    """
    names, index = np.unique(group, return_inverse=True)
    images = np.zeros((len(names), 2))
    for column, value in enumerate((HEM, ALL)):
        np.add.at(images[:, column], index[label == value], 1)
    having = images > 0
    if min(having.sum(0)) < num_folds:
        raise InputError(
            f"data.split = 'grouped': {num_folds} folds need {num_folds} patients (or "
            f"groups of them) of each class, and there are {having[:, 1].sum()} (ALL) "
            f"and {having[:, 0].sum()} (HEM)"
        )
    # What a fold ought to hold: images of each class, and groups of each class.
    loads = np.concatenate([images, having], axis=1)
    loads /= loads.sum(0) / num_folds
    # Groups are few and cannot be halved: images count for more.
    weight = np.array([1.0, 1.0, 0.25, 0.25])
    rng = np.random.default_rng([repeat, num_folds])
    best, lowest = np.zeros(len(names), np.int64), (True, np.inf)
    for _ in range(min(_DRAWINGS, 1 + _PLACED // len(names))):
        fold = _assign(loads, weight, num_folds, rng)
        held = np.stack([loads[fold == i].sum(0) for i in range(num_folds)])
        cost = float(np.sum(weight * (held - 1) ** 2))
        inside = np.stack([having[fold == i].sum(0) for i in range(num_folds)])
        testable = inside.min() >= 1 and (having.sum(0) - inside).min() >= 2
        if (not testable, cost) < lowest:
            best, lowest = fold, (not testable, cost)
    return best[index]


def _assign(
    loads: np.ndarray, weight: np.ndarray, num_folds: int, rng: np.random.Generator
) -> np.ndarray:
    """Puts groups, larger ones sooner, each where it disturbs the balance least."""
    size = loads.max(1) * np.exp(_FREEDOM * rng.standard_normal(len(loads)))
    held = np.zeros((num_folds, loads.shape[1]))
    fold = np.zeros(len(loads), np.int64)
    numbers = rng.permutation(num_folds)  # so that ties are not always the first fold's
    for row in np.argsort(-size):
        after = np.sum(weight * ((held + loads[row]) ** 2 - held**2), axis=1)
        chosen = numbers[np.argmin(after[numbers])]
        held[chosen] += loads[row]
        fold[row] = chosen
    return fold
