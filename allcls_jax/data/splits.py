"""Who trains, who validates, who tests.

What a split promises is asserted where it is made: unless it is by image, no patient
(and no group of patients that share cells) stands in two of training, validation, test.
"""

import dataclasses
import enum
import json
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from allcls_jax.config import DataConfig, SplitKind
from allcls_jax.data.cells import ALL, HEM, NO_FOLD, CellTable, Part
from allcls_jax.errors import InputError, list_problems

NUM_FOLDS = 3

LEAKY = "leaky: patients shared"

# Draws before a split is given up.
_TRIES = 100


class Split(enum.StrEnum):
    """What an image is used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """Rows of a table of cells for each use; disjoint, ascending.

    Attributes:
      train: (n,) int64 rows of the table.
      validation: likewise.
      test: likewise.
      test_name: what the test images are, in words.
      leaky: whether patients stand on both sides, so that scores flatter.
      dropped: number of training images left out, their patients being tested.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    test_name: str
    leaky: bool
    dropped: int = 0

    def rows(self) -> dict[Split, np.ndarray]:
        """Returns the rows of each use."""
        return {
            Split.TRAIN: self.train,
            Split.VALIDATION: self.validation,
            Split.TEST: self.test,
        }


def limit(table: CellTable, number: int | None) -> np.ndarray:
    """Returns the rows of a number of labelled cells, and of no others.

    Every patient of a part keeps its share of images, at least one; which ones is told
    by their hashes, so that the choice is the same on every machine and for every seed.

    Args:
      table: n cells.
      number: how many to keep; None or more than there are keeps all labelled ones.

    Returns:
      (min(number, labelled),) int64 rows, ascending.

    Raises:
      InputError: if no cell is labelled, or there are more patients than images to
        keep.
    """
    labelled = _labelled(table)
    if number is None or number >= len(labelled):
        return labelled
    keys = [f"{table.part[row]}\t{table.patient[row]}" for row in labelled]
    _, patient, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    if number < len(sizes):
        raise InputError(
            f"data.limit = {number}: every patient keeps at least one image, and there "
            f"are {len(sizes)} patients; give at least {len(sizes)}"
        )
    quota = _largest_remainder(sizes, number)
    by_hash = labelled[np.argsort(table.sha256[labelled], kind="stable")]
    patient_of = dict(zip(labelled.tolist(), patient.tolist(), strict=True))
    kept = []
    for row in by_hash.tolist():
        if quota[patient_of[row]] > 0:
            quota[patient_of[row]] -= 1
            kept.append(row)
    return np.sort(np.array(kept, dtype=np.int64))


def partition(table: CellTable, config: DataConfig, *, seed: int) -> Partition:
    """Divides labelled cells as the configuration says.

    The test set is the preliminary part where the data has it, else `test_fold`;
    validation is drawn from the training patients.

    Args:
      table: labelled cells only, as `limit` leaves them.
      config: the `data` section, validated.
      seed: of everything that is drawn.

    Raises:
      InputError: if a class is missing, in all or in one use, or there are too few
        patients or no folds, or official folds that divide a tested patient.
    """
    _labelled(table)
    _require_both_classes(table.label, "the labelled images")
    if config.split is SplitKind.IMAGE:
        result = _by_image(table, config, seed=seed)
        _require_learnable(table.label, result)
        return result
    group = _groups(table.patient, config.groups)
    if np.any(table.part == Part.PRELIM):
        test = table.part == Part.PRELIM
        # A patient of both parts would be trained and tested on.
        train = ~test & ~np.isin(group, group[test])
        test_name = "preliminary part"
    elif config.split is SplitKind.OFFICIAL:
        if np.any(table.fold == NO_FOLD):
            raise InputError(
                "data.split = 'official': the data comes without folds; give "
                "--config.data.split=grouped to have folds drawn by patient"
            )
        test = table.fold == config.test_fold
        _require_whole(table.patient, test)
        train = ~test
        test_name = f"fold {config.test_fold} of the data"
    else:
        fold = _grouped_folds(table.label, group, seed=seed)
        test = fold == config.test_fold
        train = ~test
        test_name = f"grouped fold {config.test_fold}"
    _require_both_classes(table.label[test], f"the test set ({test_name})", test=True)
    validation = train & np.isin(
        group,
        _validation_groups(table.label[train], group[train], config.validation, seed),
    )
    result = Partition(
        train=np.flatnonzero(train & ~validation),
        validation=np.flatnonzero(validation),
        test=np.flatnonzero(test),
        test_name=test_name,
        leaky=False,
        dropped=int(np.sum(~test & ~train)),
    )
    _require_learnable(table.label, result)
    check(result, table.patient)
    check(result, group)
    return result


def check(result: Partition, key: np.ndarray) -> None:
    """Asserts that no value of `key` (n,), such as the patient, has two uses."""
    uses = list(result.rows().items())
    for i, (one, first) in enumerate(uses):
        for other, second in uses[i + 1 :]:
            shared = np.intersect1d(key[first], key[second])
            assert not len(shared), f"{shared.tolist()} in both {one} and {other}"


def _by_image(table: CellTable, config: DataConfig, *, seed: int) -> Partition:
    """The plain split of the paper and of most published scores."""
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    _require_images(table.label, NUM_FOLDS)
    parts = list(folds.split(table.label, table.label))
    rest, test = parts[config.test_fold]
    order = np.random.default_rng(seed).permutation(rest)
    chosen: list[int] = []
    for label in (ALL, HEM):
        rows = order[table.label[order] == label]
        number = min(max(1, round(config.validation * len(rows))), len(rows) - 1)
        chosen += rows[:number].tolist()
    validation = np.sort(np.array(chosen, dtype=np.int64))
    return Partition(
        train=np.setdiff1d(rest, validation),
        validation=validation,
        test=np.sort(test),
        test_name="random third of the images",
        leaky=True,
    )


def _grouped_folds(label: np.ndarray, group: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns a fold 0 to 2 for each image; groups stay whole."""
    counts = _groups_of_class(label, group)
    if min(counts.values()) < NUM_FOLDS:
        raise InputError(
            f"data.split = 'grouped': {NUM_FOLDS} folds need {NUM_FOLDS} patients of "
            f"each class, and there are {counts[ALL]} (ALL) and {counts[HEM]} (HEM)"
        )
    drawn: list[np.ndarray] = []
    for state in (seed, *np.random.default_rng(seed).integers(2**32, size=_TRIES)):
        fold = np.empty(len(label), dtype=np.int64)
        folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=int(state))
        for i, (_, rows) in enumerate(folds.split(label, label, group)):
            fold[rows] = i
        # Of every fold, whichever is asked for: three runs must divide alike.
        if all(_can_test(label, group, fold == i) for i in range(NUM_FOLDS)):
            return fold
        drawn.append(fold)
    return drawn[0]  # some of its folds may do; of the others is told


def _can_test(label: np.ndarray, group: np.ndarray, test: np.ndarray) -> bool:
    """Whether both classes are tested, and the rest can train and validate."""
    rest = _groups_of_class(label[~test], group[~test])
    return len(np.unique(label[test])) == 2 and min(rest.values()) >= 2


def _validation_groups(
    label: np.ndarray, group: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Draws `share` of the groups of each class, at least one, and leaves one."""
    rng = np.random.default_rng(seed)
    groups = {value: set(group[label == value].tolist()) for value in (ALL, HEM)}
    if min(map(len, groups.values())) < 2:
        raise InputError(
            "training and validation need two patients of each class, and there are "
            f"{len(groups[ALL])} (ALL) and {len(groups[HEM])} (HEM) beside the test "
            "patients"
        )
    for _ in range(_TRIES):
        drawn: set[str] = set()
        for among in groups.values():
            number = min(max(1, round(share * len(among))), len(among) - 1)
            # A group of both classes, drawn with the first, counts for the second too.
            number = max(0, number - len(drawn & among))
            drawn |= set(rng.permutation(sorted(among - drawn))[:number].tolist())
        # Groups drawn for one class may have been the last of the other.
        if all(among & drawn and among - drawn for among in groups.values()):
            return np.array(sorted(drawn))
    raise InputError(
        f"data.validation = {share}: in {_TRIES} draws training or validation had no "
        "patient of one class, because patients (or groups of them) have both; give a "
        "smaller --config.data.validation, or another --config.seed"
    )


def _groups_of_class(label: np.ndarray, group: np.ndarray) -> dict[int, int]:
    return {value: len(np.unique(group[label == value])) for value in (ALL, HEM)}


def _groups(patient: np.ndarray, path: str | None) -> np.ndarray:
    """Returns the group of each image: its patient, or that patient's group.

    Args:
      patient: (n,) str.
      path: a JSON file with lists of patients, or with such lists under `groups`.
    """
    if path is None:
        return patient
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        lists = content["groups"] if isinstance(content, dict) else content
        groups = [[str(name) for name in names] for names in lists]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"data.groups = {path!r}: must be a JSON file of lists of patients, or "
            "have them under the key 'groups', as in "
            f'[["1", "2"], ["H1", "H2"]] ({type(error).__name__}: {error})'
        ) from error
    group_of: dict[str, str] = {}
    for names in groups:
        for name in names:
            if name in group_of:
                raise InputError(
                    f"data.groups = {path!r}: patient {name!r} stands in two groups; "
                    "join them"
                )
            group_of[name] = "+".join(sorted(names))
    if unknown := sorted(group_of.keys() - set(patient.tolist())):
        raise InputError(
            f"data.groups = {path!r}: no such patients as {', '.join(unknown)}; take "
            "them out, or write them as the data does"
        )
    return np.array([group_of.get(name, name) for name in patient.tolist()])


def _largest_remainder(sizes: np.ndarray, number: int) -> np.ndarray:
    """Returns shares of `number` in proportion to `sizes`, each at least 1."""
    exact = sizes * (number / sizes.sum())
    quota = np.maximum(1, np.floor(exact).astype(np.int64))
    while quota.sum() < number:
        quota[np.argmax(np.where(quota < sizes, exact - quota, -np.inf))] += 1
    while quota.sum() > number:
        quota[np.argmin(np.where(quota > 1, exact - quota, np.inf))] -= 1
    return quota


def _labelled(table: CellTable) -> np.ndarray:
    """Returns the rows of ALL and HEM; raises `InputError` if there are none."""
    rows = np.flatnonzero(np.isin(table.label, (ALL, HEM)))
    if len(rows):
        return rows
    final = int(np.sum(table.part == Part.FINAL))
    if final:
        raise InputError(
            f"no labelled image: {final} of {len(table)} images are of the final part "
            "of C-NMC 2019, whose labels were never published, so that nothing can be "
            "trained or scored on it; give its training or preliminary part with "
            "--config.data.dir"
        )
    raise InputError(
        f"no labelled image among {len(table)}; give labelled ones with "
        "--config.data.dir"
    )


def _require_whole(patient: np.ndarray, test: np.ndarray) -> None:
    """Refuses a test set (n,) bool that shares a patient with the rest."""
    shared = np.intersect1d(patient[test], patient[~test]).tolist()
    if shared:
        raise list_problems(
            "data.split = 'official': the folds divide patients, who would be trained "
            "on and tested",
            (f"patient {name}" for name in shared),
            remedy="Mend the column fold, or give --config.data.split=grouped to have "
            "folds drawn by patient",
        )


def _require_learnable(label: np.ndarray, result: Partition) -> None:
    """Refuses training or validation of one class."""
    for what, rows in (("training", result.train), ("validation", result.validation)):
        for value, name in ((ALL, "ALL"), (HEM, "HEM")):
            if not np.any(label[rows] == value):
                raise InputError(
                    f"{what}: no image of class {name} was drawn; give another "
                    "--config.data.validation or --config.seed, or more patients of "
                    "this class"
                )


def _require_both_classes(label: np.ndarray, what: str, *, test: bool = False) -> None:
    for value, name in ((ALL, "ALL"), (HEM, "HEM")):
        if not np.any(label == value):
            remedy = "choose another --config.data.test_fold" if test else "add some"
            raise InputError(f"{what}: no image of class {name}; {remedy}")


def _require_images(label: np.ndarray, number: int) -> None:
    for value, name in ((ALL, "ALL"), (HEM, "HEM")):
        count = int(np.sum(label == value))
        if count < 2 * number:
            raise InputError(
                f"data.split = 'image': {count} images of class {name}; at least "
                f"{2 * number} are needed"
            )
