"""Who trains, who validates, who tests.

What a split promises is asserted where it is made and again where it is evaluated. Of
the grouped and the held-out split: no group of patients that share cells, and no known
twin, stands in two of training, validation and test. Of the official folds: no patient
does; the twins that C-NMC 2019 has in different folds are counted and told.
"""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedKFold

from allcls_jax.config import DataConfig, SplitKind
from allcls_jax.config_rules import NUM_OFFICIAL_FOLDS
from allcls_jax.data.cells import ALL, HEM, NO_FOLD, CellTable, Part
from allcls_jax.data.folds import draw_folds
from allcls_jax.data.groups import Groups, find_groups
from allcls_jax.errors import InputError, list_problems

LEAKY = "leaky: patients shared"

# Draws before a validation set is given up.
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
      groups: of all rows of the table.
      left_out: reason → number of images of the table that have no use.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    test_name: str
    leaky: bool
    groups: Groups
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)

    def rows(self) -> dict[Split, np.ndarray]:
        """Returns the rows of each use."""
        return {
            Split.TRAIN: self.train,
            Split.VALIDATION: self.validation,
            Split.TEST: self.test,
        }

    def twins_of(self, use: Split) -> np.ndarray:
        """Returns the test rows (k,) with a known twin in training or validation."""
        return self.groups.twins_among(self.test, self.rows()[use])

    def summary(self, table: CellTable) -> list[dict[str, str | int]]:
        """Returns what stands on each side, and what test images share with it.

        Args:
          table: that the rows are of.

        Returns:
          For each use: `use`, `images`, `patients`, `groups`, `ALL`, `HEM`; and
          `shared_groups`, groups of it that are tested too, and `twins`, test images
          with a known twin in it (both 0 for the test images themselves).
        """
        found = []
        tested = set(self.groups.group[self.test].tolist())
        for use, rows in self.rows().items():
            cells, other = table.take(rows), use is not Split.TEST
            groups = set(self.groups.group[rows].tolist())
            counts = cells.counts()
            found.append(
                {"use": str(use)}
                | {name: counts[name] for name in ("images", "patients")}
                | {"groups": len(groups), "ALL": counts["ALL"], "HEM": counts["HEM"]}
                | {
                    "shared_groups": len(groups & tested) if other else 0,
                    "twins": len(self.twins_of(use)) if other else 0,
                }
            )
        return found


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
    # Ids decide between identical images.
    keys = (table.image_id[labelled], table.sha256[labelled])
    by_hash = labelled[np.lexsort(keys)]
    patient_of = dict(zip(labelled.tolist(), patient.tolist(), strict=True))
    kept = []
    for row in by_hash.tolist():
        if quota[patient_of[row]] > 0:
            quota[patient_of[row]] -= 1
            kept.append(row)
    return np.sort(np.array(kept, dtype=np.int64))


def split_kind(table: CellTable, config: DataConfig) -> SplitKind:
    """Returns the split that a configuration asks for, or the table suggests."""
    if config.split is not None:
        return config.split
    if np.any((table.part == Part.PRELIM) & (table.label >= 0)):
        return SplitKind.HELD_OUT
    folded = table.fold[table.part == Part.TRAIN] != NO_FOLD
    return SplitKind.OFFICIAL if np.all(folded) else SplitKind.GROUPED


def partition(
    table: CellTable,
    config: DataConfig,
    *,
    seed: int,
    copies: Sequence[tuple[str, str]] = (),
    absent: Sequence[str] = (),
) -> Partition:
    """Divides labelled cells as the configuration says.

    Args:
      table: labelled cells only, as `limit` leaves them.
      config: the `data` section, validated.
      seed: of which training patients validate; the test images do not depend on it.
      copies: pairs of image ids that show the same cell, made so by us.
      absent: patients who are not in the table, and may be named as joined to some.

    Raises:
      InputError: if a class is missing, in all or in one use, or there are too few
        patients or no folds, or official folds that divide a tested patient.
    """
    _labelled(table)
    _require_both_classes(table.label, "the labelled images")
    train = table.part == Part.TRAIN
    _require_both_classes(table.label[train], "the training part")
    groups = find_groups(table, config.groups, copies=copies, absent=absent)
    kind = split_kind(table, config)
    if kind.leaky:
        result = _by_image(table, config, kind, groups, seed=seed)
        _require_learnable(table.label, result)
        return result
    group = groups.group
    left_out = {"of another part than the training part": int(np.sum(~train))}
    if kind is SplitKind.HELD_OUT:
        test, left_out = table.part == Part.PRELIM, {}
        if not np.any(test):
            raise InputError(
                "data.split = 'held_out': there is no labelled preliminary part; give "
                "--config.data.split=official or =grouped"
            )
        # A patient of both parts would be trained and tested on.
        known = train & np.isin(group, group[test])
        left_out["their patients, or groups of them, are tested"] = int(np.sum(known))
        train &= ~known
        test_name = "preliminary part"
    elif kind is SplitKind.OFFICIAL:
        if np.any(table.fold[train] == NO_FOLD):
            raise InputError(
                "data.split = 'official': the data comes without folds; give "
                "--config.data.split=grouped to have folds drawn by patient"
            )
        if config.num_folds != NUM_OFFICIAL_FOLDS:
            raise InputError(
                f"data.num_folds = {config.num_folds}: the data comes with "
                f"{NUM_OFFICIAL_FOLDS} folds of its own; give "
                "--config.data.split=grouped to have others drawn"
            )
        test = train & (table.fold == config.test_fold)
        _require_whole(table.patient[train], test[train])
        test_name = f"official fold {config.test_fold}"
        train &= ~test
        # A fold is given as it is; validation is ours, and keeps groups whole.
    else:
        rows = np.flatnonzero(train)
        fold = draw_folds(
            table.label[rows], group[rows], config.num_folds, repeat=config.repeat
        )
        test = np.zeros(len(table), bool)
        test[rows[fold == config.test_fold]] = True
        test_name = f"grouped fold {config.test_fold}"
        train &= ~test
    remedy = "choose another --config.data.test_fold"
    if kind is SplitKind.HELD_OUT:
        remedy = "give --config.data.split=official or =grouped"
    what = f"the test set ({test_name})"
    _require_both_classes(table.label[test], what, remedy=remedy)
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
        groups=groups,
        left_out={reason: number for reason, number in left_out.items() if number},
    )
    _require_learnable(table.label, result)
    check(result, table.patient)
    if kind is not SplitKind.OFFICIAL:
        check(result, group)
        for use in (Split.TRAIN, Split.VALIDATION):
            assert not len(result.twins_of(use)), f"a twin in both {use} and test"
    return result


def check(result: Partition, key: np.ndarray) -> None:
    """Asserts that no value of `key` (n,), such as the patient, has two uses."""
    uses = list(result.rows().items())
    for i, (one, first) in enumerate(uses):
        for other, second in uses[i + 1 :]:
            shared = np.intersect1d(key[first], key[second])
            assert not len(shared), f"{shared.tolist()} in both {one} and {other}"


def _by_image(
    table: CellTable,
    config: DataConfig,
    kind: SplitKind,
    groups: Groups,
    *,
    seed: int,
) -> Partition:
    """The plain split of the paper and of most published scores."""
    number = config.num_folds
    train = np.flatnonzero(table.part == Part.TRAIN)
    label = table.label[train]
    _require_images(label, number, kind)
    folds = StratifiedKFold(number, shuffle=True, random_state=config.repeat)
    rest, test = (
        train[rows] for rows in list(folds.split(label, label))[config.test_fold]
    )
    order = np.random.default_rng(seed).permutation(rest)
    chosen: list[int] = []
    for value in (ALL, HEM):
        rows = order[table.label[order] == value]
        count = min(max(1, round(config.validation * len(rows))), len(rows) - 1)
        chosen += rows[:count].tolist()
    validation = np.sort(np.array(chosen, dtype=np.int64))
    other = len(table) - len(train)
    return Partition(
        train=np.setdiff1d(rest, validation),
        validation=validation,
        test=np.sort(test),
        test_name=f"random fold {config.test_fold} of the images",
        leaky=True,
        groups=groups,
        left_out={"of another part than the training part": other} if other else {},
    )


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


def _largest_remainder(sizes: np.ndarray, number: int) -> np.ndarray:
    """Returns shares of `number` in proportion to `sizes`, each at least 1."""
    exact = sizes * (number / sizes.sum())
    quota = np.maximum(1, np.floor(exact).astype(np.int64))
    if (left := number - quota.sum()) > 0:
        quota[np.argsort(quota - exact, kind="stable")[:left]] += 1
    # The rest for patients of less than one: one of each before anyone gives a second.
    while (over := quota.sum() - number) > 0:
        order = np.argsort(exact - quota, kind="stable")
        quota[order[quota[order] > 1][:over]] -= 1
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


def _require_both_classes(
    label: np.ndarray, what: str, *, remedy: str = "add some"
) -> None:
    for value, name in ((ALL, "ALL"), (HEM, "HEM")):
        if not np.any(label == value):
            raise InputError(f"{what}: no image of class {name}; {remedy}")


def _require_images(label: np.ndarray, number: int, kind: SplitKind) -> None:
    for value, name in ((ALL, "ALL"), (HEM, "HEM")):
        count = int(np.sum(label == value))
        if count < 2 * number:
            raise InputError(
                f"data.split = {str(kind)!r}: {count} images of class {name}; "
                f"{number} folds need at least {2 * number}: add some, or give a "
                "smaller --config.data.num_folds"
            )
