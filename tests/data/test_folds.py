"""Folds: groups whole, classes balanced, each repeat another drawing."""

import itertools

import numpy as np
import pytest

from allcls_jax.data import folds
from allcls_jax.data.folds import draw_folds
from allcls_jax.data.groups import find_groups
from allcls_jax.errors import InputError
from tests.data.tables import make_table, planted


def drawn(table, num_folds: int, *, repeat: int = 0, group=None) -> np.ndarray:
    group = table.patient if group is None else group
    return draw_folds(table.label, group, num_folds, repeat=repeat)


def shares(label: np.ndarray, fold: np.ndarray, num_folds: int) -> np.ndarray:
    """(num_folds, 2): images of HEM and of ALL, 1 being an equal share."""
    counts = np.array(
        [[np.sum((fold == i) & (label == v)) for v in (0, 1)] for i in range(num_folds)]
    )
    return counts * num_folds / counts.sum(0)


def moved(group: np.ndarray, one: np.ndarray, other: np.ndarray) -> int:
    """The least number of groups that change folds, whatever folds are numbered."""
    _, first = np.unique(group, return_index=True)
    one, other = one[first], other[first]
    number = int(max(one.max(), other.max())) + 1
    return min(
        int(np.sum(np.array(order)[one] != other))
        for order in itertools.permutations(range(number))
    )


@pytest.mark.parametrize("seed", range(8))
def test_no_group_is_divided_and_every_fold_can_be_tested(seed):
    table, num_folds = planted(seed).table, 2 + seed % 4
    group = find_groups(table, None).group
    fold = drawn(table, num_folds, repeat=seed, group=group)
    assert fold.shape == (len(table),)
    assert fold.dtype == np.int64
    assert sorted(set(fold.tolist())) == list(range(num_folds))
    for name in np.unique(group):
        assert len(np.unique(fold[group == name])) == 1, name
    for number in range(num_folds):
        assert set(table.label[fold == number].tolist()) == {0, 1}
        for value in (0, 1):
            left = group[(fold != number) & (table.label == value)]
            assert len(np.unique(left)) >= 2


@pytest.mark.parametrize("seed", range(6))
def test_images_and_groups_of_each_class_are_balanced(seed):
    rng = np.random.default_rng(seed)
    sizes = {f"{'H' if i % 3 == 0 else ''}{i}": rng.integers(4, 60) for i in range(60)}
    table = make_table({name: int(size) for name, size in sizes.items()})
    fold = drawn(table, 3, repeat=seed)
    assert np.abs(shares(table.label, fold, 3) - 1).max() < 0.03
    for value, whole in ((0, 20), (1, 40)):
        here = [
            len(np.unique(table.patient[(fold == i) & (table.label == value)]))
            for i in range(3)
        ]
        assert max(here) - min(here) <= max(2, whole / 8), here


def test_the_same_repeat_is_the_same_in_any_order_of_rows():
    table = planted(0).table
    order = np.random.default_rng(1).permutation(len(table))
    for repeat in (0, 7, 2**32 - 1):
        fold = drawn(table, 3, repeat=repeat)
        assert np.array_equal(drawn(table, 3, repeat=repeat), fold)
        assert np.array_equal(drawn(table.take(order), 3, repeat=repeat), fold[order])


def test_repeats_are_other_drawings():
    table = planted(0).table
    number = len(np.unique(table.patient))
    found = [drawn(table, 3, repeat=repeat) for repeat in range(5)]
    for one, other in itertools.combinations(found, 2):
        assert moved(table.patient, one, other) > number / 4


def test_a_group_larger_than_a_fold_leaves_the_others_balanced():
    sizes = {f"{'H' if i % 2 else ''}{i}": 10 for i in range(24)} | {"big": 500}
    table = make_table(sizes)
    fold = drawn(table, 3)
    (home,) = np.unique(fold[table.patient == "big"])
    others = [np.sum((fold == i) & (table.label == 1)) for i in range(3) if i != home]
    assert abs(others[0] - others[1]) <= 10
    assert np.abs(shares(table.label, fold, 3)[:, 0] - 1).max() < 0.3


# The best balanced drawing of the last three has a fold that cannot be tested.
@pytest.mark.parametrize("seed", [*range(9), 64, 122, 318])
def test_each_fold_can_be_tested_wherever_any_division_allows_it(seed):
    # Few groups, many of both classes: every division of them is tried.
    rng = np.random.default_rng(seed)
    num_folds, kinds = 2 + seed % 2, rng.integers(3, size=4 + seed % 3)
    kinds[:2] = 2
    names = [str(i) for i, kind in enumerate(kinds) for _ in range(rng.integers(2, 9))]
    group = np.array(names)
    kind = kinds[group.astype(int)]
    label = np.where(kind == 2, np.arange(len(group)) % 2, kind)
    having = np.array(
        [
            [np.any(label[group == str(i)] == v) for v in (0, 1)]
            for i in range(len(kinds))
        ]
    )

    def testable(fold: np.ndarray) -> bool:
        inside = np.array([having[fold == i].sum(0) for i in range(num_folds)])
        return inside.min() >= 1 and (having.sum(0) - inside).min() >= 2

    every = itertools.product(range(num_folds), repeat=len(kinds))
    possible = any(testable(np.array(fold)) for fold in every)
    if having.sum(0).min() < num_folds:
        assert not possible
        return
    fold = draw_folds(label, group, num_folds, repeat=seed)
    numbers = np.array([fold[group == str(i)][0] for i in range(len(kinds))])
    assert testable(numbers) == possible


def test_fewer_groups_of_a_class_than_folds_are_refused_with_their_numbers():
    table = make_table({"0": 5, "1": 5, "2": 5, "3": 5, "H1": 9, "H2": 2})
    with pytest.raises(InputError, match=r"3 folds need 3 .* 4 \(ALL\) and 2 \(HEM\)"):
        drawn(table, 3)
    assert set(drawn(table, 2).tolist()) == {0, 1}


def test_many_groups_cost_no_more_drawings_than_few(monkeypatch):
    placed = []
    assign = folds._assign

    def counted(loads, *rest):
        placed.append(len(loads))
        return assign(loads, *rest)

    monkeypatch.setattr(folds, "_assign", counted)
    label = np.arange(20_000) % 2
    fold = draw_folds(label, np.arange(20_000).astype(str), 5, repeat=0)
    assert sum(placed) <= 60_000
    assert np.abs(shares(label, fold, 5) - 1).max() < 0.001


@pytest.mark.parametrize(("num_folds", "tolerance"), [(3, 0.03), (5, 0.15)])
@pytest.mark.parametrize("joined", [False, True])
def test_real_cells_are_balanced_and_drawn_anew(
    cnmc_table, num_folds, tolerance, joined
):
    table = cnmc_table
    group = find_groups(table, None).group if joined else table.patient
    found = []
    for repeat in (0, 1, 2, 0):
        fold = drawn(table, num_folds, repeat=repeat, group=group)
        assert np.abs(shares(table.label, fold, num_folds) - 1).max() < tolerance
        found.append(fold)
    assert np.array_equal(found[0], found.pop())
    for one, other in itertools.combinations(found, 2):
        assert moved(group, one, other) > len(np.unique(group)) / 3
