"""Turned copies: as many as balance the classes, each a true view of its original."""

import dataclasses
import pickle

import numpy as np
import pytest

from allcls_jax.config import DataConfig, SplitKind, SyntheticConfig
from allcls_jax.data import copies, splits
from allcls_jax.data.cells import ALL, HEM, Part
from allcls_jax.data.copies import TurnedCopies, balance
from allcls_jax.data.groups import find_groups
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.prepare import open_cells
from allcls_jax.errors import InputError

SIZE = 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    config = DataConfig(synthetic=SyntheticConfig(num_images=64, num_patients=12))
    folder = tmp_path_factory.mktemp("cache")
    return open_cells(config, pack_size=SIZE, cache_dir=folder).directory


@pytest.fixture
def cells(directory) -> PackedCells:
    """A pack of 32 ALL and 32 HEM whose table a test may change."""
    return PackedCells(directory)


def some(cells: PackedCells, *, rare: int, value: int = HEM) -> np.ndarray:
    """All rows of the other class, and that many of this one."""
    return np.sort(
        np.concatenate(
            [
                np.flatnonzero(cells.table.label != value),
                np.flatnonzero(cells.table.label == value)[:rare],
            ]
        )
    )


def turned(image: np.ndarray, view: int) -> np.ndarray:
    """What `VIEWS[view]` says, said once more."""
    turns, mirror = copies.VIEWS[view]
    return np.rot90(np.fliplr(image) if mirror else image, turns)


def test_the_views_are_all_quarter_turns_and_mirror_images_but_the_picture_itself():
    image = np.random.default_rng(0).integers(256, size=(5, 5, 3), dtype=np.uint8)
    every = {np.rot90(i, k).tobytes() for i in (image, image[::-1]) for k in range(4)}
    seen = {turned(image, view).tobytes() for view in range(len(copies.VIEWS))}
    assert len(copies.VIEWS) == len(seen) == 7
    assert seen == every - {image.tobytes()}


@pytest.mark.parametrize(("rare", "value"), [(4, HEM), (5, ALL), (13, HEM), (31, ALL)])
@pytest.mark.parametrize("repeat", [0, 3])
def test_classes_are_balanced_exactly_and_nobody_is_seen_twice_alike(
    cells, rare, value, repeat
):
    rows = some(cells, rare=rare, value=value)
    found, table = balance(cells, rows, repeat=repeat)
    assert len(found) == 32 - rare
    assert set(found.table.label.tolist()) == {value}
    every = np.concatenate([rows, np.arange(len(cells), len(table))])
    assert np.sum(table.label[every] == ALL) == np.sum(table.label[every] == HEM) == 32
    assert set(found.rows.tolist()) <= set(rows.tolist())
    pairs = set(zip(found.rows.tolist(), found.views.tolist(), strict=True))
    assert len(pairs) == len(found)
    assert set(found.views.tolist()) <= set(range(7))
    # Everybody is copied once before anybody is twice.
    times = np.bincount(found.rows, minlength=len(cells))[rows]
    times = times[cells.table.label[rows] == value]
    assert times.max() - times.min() <= 1
    if rare == 4:
        assert times.tolist() == [7] * 4


def test_a_copy_is_its_original_turned_pixel_for_pixel(cells):
    found, _ = balance(cells, some(cells, rare=4), repeat=1)
    assert len(found) == 28
    for row in range(len(found)):
        original = cells[int(found.rows[row])]
        image = found[row]
        assert np.array_equal(image, turned(original, int(found.views[row])))
        assert not np.array_equal(image, original)
        assert image.dtype == np.uint8
        assert image.shape == (SIZE, SIZE, 3)
        assert image.flags.c_contiguous
    assert (found.size, found.crop) == (cells.size, cells.crop)


def test_a_copy_bears_its_originals_record_under_a_name_and_a_hash_of_its_own(cells):
    rows = some(cells, rare=4)
    found, table = balance(cells, rows, repeat=1)
    originals = cells.table.take(found.rows)
    for name in ("patient", "label", "part", "fold", "area"):
        assert np.array_equal(getattr(found.table, name), getattr(originals, name))
    for column, whole in zip(found.table.columns(), table.columns(), strict=True):
        assert np.array_equal(whole[len(cells) :], column)
    for column, whole in zip(cells.table.columns(), table.columns(), strict=True):
        assert np.array_equal(whole[: len(cells)], column)
    for column in (table.image_id, table.sha256):
        assert len(set(column.tolist())) == len(table) == 64 + 28
    assert {len(value) for value in table.sha256.tolist()} == {64}
    names = zip(found.table.image_id, originals.image_id, strict=True)
    assert all(str(copy).startswith(f"{name}~") for copy, name in names)


def test_the_same_view_has_the_same_hash_and_name_in_every_drawing(cells):
    # Features that are kept under the hashes depend on it.
    known: dict[tuple[int, int], tuple[str, str]] = {}
    for rare in (4, 5, 6):
        for repeat in range(3):
            found, _ = balance(cells, some(cells, rare=rare), repeat=repeat)
            keys = zip(found.rows.tolist(), found.views.tolist(), strict=True)
            names = zip(
                found.table.image_id.tolist(), found.table.sha256.tolist(), strict=True
            )
            for key, name in zip(keys, names, strict=True):
                assert known.setdefault(key, name) == name
    assert len(set(known.values())) == len(known) > 4 * 7


def test_a_repeat_is_a_drawing(cells):
    rows = some(cells, rare=12)
    found = [balance(cells, rows, repeat=repeat)[0] for repeat in (0, 0, 1)]
    assert np.array_equal(found[0].table.image_id, found[1].table.image_id)
    drawn = [set(one.table.image_id.tolist()) for one in found]
    assert len(drawn[0] & drawn[2]) < len(drawn[0]) / 2


def test_only_the_training_part_is_balanced(cells):
    # Twenty of the ALL images are of the preliminary part, which nobody divides.
    prelim = np.flatnonzero(cells.table.label == ALL)[:20]
    cells.table.part[prelim] = Part.PRELIM
    rows = some(cells, rare=8)
    found, table = balance(cells, rows, repeat=0)
    every = np.concatenate([rows, np.arange(len(cells), len(table))])
    trained = every[table.part[every] == Part.TRAIN]
    assert np.sum(table.label[trained] == ALL) == 12
    assert np.sum(table.label[trained] == HEM) == 12
    assert set(found.table.part.tolist()) == {Part.TRAIN}


def test_seven_views_of_each_are_the_most(cells):
    found, _ = balance(cells, some(cells, rare=3)[8:], repeat=0)
    assert len(found) == 24 - 3 == 7 * 3


def test_balanced_classes_need_no_copies(cells):
    found, table = balance(cells, np.arange(64), repeat=0)
    assert len(found) == 0
    assert len(table) == 64
    assert np.array_equal(table.image_id, cells.table.image_id)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (lambda cells: some(cells, rare=3), "32 ALL and 3 HEM"),
        (lambda cells: some(cells, rare=3)[5:], "27 ALL and 3 HEM"),
        (lambda cells: some(cells, rare=3)[7:], "25 ALL and 3 HEM"),
        (lambda cells: some(cells, rare=0), "32 ALL and 0 HEM"),
        (lambda cells: some(cells, rare=0, value=ALL), "0 ALL and 32 HEM"),
        (lambda cells: np.zeros(0, np.int64), "0 ALL and 0 HEM"),
    ],
)
def test_a_class_too_rare_for_seven_views_of_each_is_refused(cells, rows, told):
    with pytest.raises(InputError, match=rf"image_copies': {told} images cannot"):
        balance(cells, rows(cells), repeat=0)


def test_a_copy_that_would_be_called_as_an_image_is_refused(cells):
    rows = some(cells, rare=4)  # so that every view of them is made
    (copied, *_), other = np.flatnonzero(cells.table.label == HEM), rows[0]
    names = cells.table.image_id.astype("U40")
    names[other] = f"{names[copied]}~3"
    cells.table = dataclasses.replace(cells.table, image_id=names)
    with pytest.raises(InputError, match=f"would be called {names[other]}, as"):
        balance(cells, rows, repeat=0)


def test_copies_survive_another_process(cells):
    found, _ = balance(cells, some(cells, rare=9), repeat=0)
    again: TurnedCopies = pickle.loads(pickle.dumps(found))
    for row in (0, 11, 22):
        assert np.array_equal(again[row], found[row])
    assert again.table.image_id.tolist() == found.table.image_id.tolist()


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_the_split_behind_the_copies_puts_cells_on_both_sides(cells, fold):
    rows = some(cells, rare=8)
    _, every = balance(cells, rows, repeat=0)
    table = every.take(np.concatenate([rows, np.arange(len(cells), len(every))]))
    config = DataConfig(split=SplitKind.IMAGE_COPIES, test_fold=fold)
    part = splits.partition(table, config, seed=0)
    assert part.leaky
    assert sum(map(len, part.rows().values())) == len(table) == 64
    for use in part.rows().values():
        assert abs(np.sum(table.label[use] == ALL) - len(use) / 2) <= 1
    cell = np.array([name.partition("~")[0] for name in table.image_id.tolist()])
    assert len(np.intersect1d(cell[part.train], cell[part.test])) > 3
    assert len(find_groups(table, None).group) == 64


def test_a_copy_and_its_original_count_as_one_cell(cells):
    rows = some(cells, rare=10)
    found, every = balance(cells, rows, repeat=0)
    table = every.take(np.concatenate([rows, np.arange(len(cells), len(every))]))
    config = DataConfig(split=SplitKind.IMAGE_COPIES)
    part = splits.partition(table, config, seed=0, copies=found.pairs())
    first = np.array([name.partition("~")[0] for name in table.image_id.tolist()])
    for use in (splits.Split.TRAIN, splits.Split.VALIDATION):
        expected = part.test[np.isin(first[part.test], first[part.rows()[use]])]
        assert len(expected)
        assert np.array_equal(np.sort(part.twins_of(use)), expected)
