"""Whose the synthetic cells are: patients, their images, their folds.

All of it follows from `SyntheticConfig`: a cell's number tells its patient.
"""

import bisect
import functools
import hashlib

import numpy as np
from numpy.random import PCG64, Generator

from allcls_jax.config import SyntheticConfig
from allcls_jax.data.cells import ALL, HEM


def patient(config: SyntheticConfig, row: int) -> tuple[str, int]:
    """Returns id and label of a patient."""
    half = config.num_patients // 2
    return (str(row + 1), ALL) if row < half else (f"H{row - half + 1}", HEM)


def place(config: SyntheticConfig, index: int) -> tuple[int, int]:
    """Returns a cell's patient, by row, and its number within the patient."""
    ends = _ends(config.seed, config.num_images, config.num_patients, config.all_share)
    row = bisect.bisect_right(ends, index)
    return row, index - (ends[row - 1] if row else 0)


def image_counts(config: SyntheticConfig) -> np.ndarray:
    """Returns the number of images of each patient; at least 1, the sum exact."""
    ends = _ends(config.seed, config.num_images, config.num_patients, config.all_share)
    return np.diff(ends, prepend=0)


# Counted once, not for every cell: the time would grow with both numbers.
@functools.lru_cache(maxsize=16)
def _ends(
    seed: int, num_images: int, num_patients: int, all_share: float
) -> tuple[int, ...]:
    """Returns the number of images of the patients up to each one, itself included."""
    half = num_patients // 2
    rng = generator("counts", seed)
    counts: list[np.ndarray] = []
    hem = int(num_images * (1 - all_share))
    for total in (num_images - hem, hem):
        weights = rng.uniform(0.6, 1.4, half)
        exact = (total - half) * weights / weights.sum()
        whole = np.floor(exact).astype(np.int64)
        # Largest remainders get what rounding down has left over.
        order = np.argsort(whole - exact, kind="stable")
        whole[order[: total - half - whole.sum()]] += 1
        counts.append(1 + whole)
    return tuple(np.cumsum(np.concatenate(counts)).tolist())


def folds(counts: np.ndarray) -> np.ndarray:
    """Returns a fold for each patient, balanced in patients and images by class."""
    half = len(counts) // 2
    found = np.zeros(len(counts), np.int64)
    for rows in (np.arange(half), np.arange(half, 2 * half)):
        images = np.zeros(3, np.int64)
        # Largest first into the emptiest fold.
        for row in rows[np.argsort(-counts[rows], kind="stable")]:
            found[row] = np.argmin(images)
            images[found[row]] += counts[row]
    return found


def generator(*words: str | int) -> Generator:
    """Returns a generator that depends on the words alone, on every machine."""
    digest = hashlib.sha256("|".join(map(str, words)).encode()).digest()
    return Generator(PCG64(int.from_bytes(digest, "big")))
