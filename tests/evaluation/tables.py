"""Predictions of invented patients, small enough to reckon with."""

from collections.abc import Sequence

import numpy as np

from allcls_jax.data.cells import ALL, HEM, NO_FOLD
from allcls_jax.data.splits import Split
from allcls_jax.evaluation.predictions import Predictions, concatenate


def rows(
    label: Sequence[int] | np.ndarray,
    probability: Sequence[float] | np.ndarray,
    *,
    patient: Sequence[str] | None = None,
    group: Sequence[str] | None = None,
    split: str = Split.TEST,
    repeat: int = 0,
    test_fold: int = 0,
    seed: int = 0,
    prefix: str = "",
) -> Predictions:
    """One run's rows of one split; by default every image is a patient of its own."""
    number = len(label)
    image = np.array([f"{prefix}{split}-{i}" for i in range(number)], dtype=str)
    named = image if patient is None else np.array(patient, dtype=str)
    return Predictions(
        image_id=image,
        patient=named,
        group=named if group is None else np.array(group, dtype=str),
        label=np.array(label, dtype=np.int64),
        probability=np.array(probability, dtype=np.float64),
        part=np.full(number, "train"),
        fold=np.full(number, NO_FOLD),
        split=np.full(number, str(split)),
        area=1000 + 10 * np.arange(number),
        repeat=np.full(number, repeat),
        test_fold=np.full(number, test_fold),
        seed=np.full(number, seed),
    )


def drawn(
    num_all: int = 12,
    num_hem: int = 8,
    *,
    images: int = 10,
    effect: float = 1.0,
    seed: int = 0,
    folds: int = 1,
    passes: int = 1,
    validation: bool = True,
    ties: bool = False,
) -> Predictions:
    """Runs on patients of both classes, each easier or harder by a normal `effect`."""
    rng = np.random.default_rng(seed)
    tables = []
    for split, off in ((Split.TEST, 0), (Split.VALIDATION, 100)):
        if split == Split.VALIDATION and not validation:
            continue
        names, labels, shifts = [], [], []
        for number in range(num_all + num_hem):
            shift = effect * rng.normal()
            for _ in range(rng.integers(1, 2 * images)):
                names.append(f"p{off + number}")
                labels.append(ALL if number < num_all else HEM)
                shifts.append(shift)
        label, name = np.array(labels), np.array(names)
        # Patients of both classes in every fold.
        fold = np.array([int(patient[1:]) % folds for patient in names])
        common = np.array(shifts) + rng.normal(size=len(label)) + 2 * label - 1
        for number in range(passes):
            logits = common + 0.3 * rng.normal(size=len(label))
            probability = 1 / (1 + np.exp(-logits))
            if ties:
                probability = probability.round(1)
            for part in range(folds):
                given = rows(
                    label, probability, patient=name.tolist(), split=split, seed=number
                )
                given.test_fold[:] = part
                given.fold[:] = fold
                chosen = fold == part
                if split == Split.VALIDATION and folds > 1:
                    chosen = ~chosen  # each run has other patients to validate with
                tables.append(given.take(chosen))
    return concatenate(tables)
