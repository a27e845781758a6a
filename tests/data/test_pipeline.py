"""Batches: every image once, the same stream however it is read, any beginning."""

import itertools
import pickle

import numpy as np
import pytest

from allcls_jax.config import DataConfig, Sampling, SyntheticConfig, TrainConfig
from allcls_jax.data import pipeline, transforms
from allcls_jax.data.cells import ALL, CellTable
from allcls_jax.data.copies import TurnedCopies, balance, turn
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.pipeline import (
    Batch,
    Order,
    PackedImages,
    Reading,
    sampling_chances,
)
from allcls_jax.data.prepare import open_cells


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> PackedCells:
    config = DataConfig(synthetic=SyntheticConfig(num_images=30, num_patients=12))
    cache = tmp_path_factory.mktemp("cache")
    return open_cells(config, pack_size=40, cache_dir=cache)


ROWS = np.array([3, 4, 5, 9, 10, 11, 12, 20, 21, 29])


def reading(**options) -> Reading:
    return Reading(**({"batch_size": 4} | options))


def training(cells, count, start=0, **options) -> list[Batch]:
    images = PackedImages(cells, None, 32)
    order = Order(ROWS, 5, dihedral=True)
    stream = pipeline.training_batches(
        images, cells.table, order, reading(**options), start=start
    )
    return list(itertools.islice(stream, count))


def evaluation(cells, rows, reading) -> list[Batch]:
    images = PackedImages(cells, None, 32)
    return list(pipeline.evaluation_batches(images, cells.table, rows, reading))


def rows_of(batches) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def images_of(batch: Batch) -> np.ndarray:
    images = batch.get("image")
    assert images is not None
    return images


def test_an_epoch_shows_every_image_once_in_a_new_order(cells):
    steps = pipeline.steps_per_epoch(len(ROWS), 4)
    assert steps == 3
    rows = rows_of(training(cells, 3 * steps))
    epochs = [
        [row for batch in rows[i : i + steps] for row in batch if row >= 0]
        for i in range(0, 3 * steps, steps)
    ]
    for epoch in epochs:
        assert sorted(epoch) == ROWS.tolist()
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_holds_what_its_rows_say(cells):
    for batch in training(cells, 3):
        assert images_of(batch).shape == (4, 32, 32, 3)
        assert images_of(batch).dtype == np.uint8
        for i, row in enumerate(batch["row"].tolist()):
            if row < 0:
                assert batch["mask"][i] == 0
                assert not images_of(batch)[i].any()
            else:
                assert batch["mask"][i] == 1
                assert batch["label"][i] == cells.table.label[row]
                expected = transforms.resize(cells[row], 32)
                assert np.array_equal(images_of(batch)[i], expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stream_is_the_same_for_any_number_of_workers(cells, workers):
    alone = training(cells, 7)
    shared = training(cells, 7, num_workers=workers)
    for one, other in zip(alone, shared, strict=True):
        for name in one:
            assert np.array_equal(one[name], other[name])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_stopped(cells, workers):
    whole = rows_of(training(cells, 9))
    assert rows_of(training(cells, 4, start=5, num_workers=workers)) == whole[5:]


def test_another_seed_gives_another_order(cells):
    images = PackedImages(cells, None, 32)
    order = Order(ROWS, 6)
    other = pipeline.training_batches(images, cells.table, order, reading())
    assert rows_of(itertools.islice(other, 3)) != rows_of(training(cells, 3))


def test_processes_share_each_batch(cells):
    alone = training(cells, 6)
    blocks = [training(cells, 6, process=p, num_processes=2) for p in range(2)]
    for one, first, second in zip(alone, *blocks, strict=True):
        for name in one:
            joined = np.concatenate([first[name], second[name]])
            assert np.array_equal(one[name], joined)


def test_evaluation_shows_every_image_once_in_order(cells):
    batches = evaluation(cells, ROWS, reading())
    assert [row for rows in rows_of(batches) for row in rows] == [
        *ROWS.tolist(),
        -1,
        -1,
    ]
    assert sum(batch["mask"].sum() for batch in batches) == len(ROWS)


def test_fewer_images_than_a_batch_make_one_padded_batch(cells):
    batches = list(evaluation(cells, ROWS[:3], reading(batch_size=8)))
    assert rows_of(batches) == [[3, 4, 5, -1, -1, -1, -1, -1]]


# --- two tables, one below the other


@pytest.fixture(scope="module")
def balanced(cells) -> tuple[TurnedCopies, CellTable]:
    """Copies of 4 ALL cells, which are to match 15 HEM, and the table of all."""
    rows = np.flatnonzero(cells.table.label == ALL)[:4]
    rows = np.concatenate([rows, np.flatnonzero(cells.table.label != ALL)])
    return balance(cells, rows, repeat=0)


def test_images_of_a_pack_and_its_copies_are_one_below_the_other(cells, balanced):
    found, every = balanced
    images = PackedImages(cells, found, 32)
    assert len(every) == 30 + len(found) == 30 + 11
    for row in range(30):
        assert np.array_equal(images[row], transforms.resize(cells[row], 32))
    for row in range(11):
        upright = transforms.resize(cells[int(found.rows[row])], 32)
        assert np.array_equal(
            images[30 + row], turn(upright, 1 + int(found.views[row]))
        )
    for missing in (-1, 41):
        with pytest.raises(IndexError):
            images[missing]
    with pytest.raises(IndexError):
        PackedImages(cells, None, 32)[30]


def test_a_view_has_the_key_of_its_original_and_how_that_is_turned(cells, balanced):
    found, _ = balanced
    images = PackedImages(cells, found, 40)
    for row in (0, 29, 30, 33, 40):
        for view in range(8):
            sha256, of_original = images.key(row, view)
            original = row if row < 30 else int(found.rows[row - 30])
            assert sha256.hex() == cells.table.sha256[original]
            assert np.array_equal(
                turn(cells[original], of_original), turn(images[row], view)
            )
    assert images.key(5, 0)[1] == 0


def test_batches_of_images_and_copies_hold_what_their_rows_say(cells, balanced):
    found, every = balanced
    images = PackedImages(cells, found, 32)
    order = Order(np.array([0, 29, 30, 31, 40]), 1)
    stream = pipeline.training_batches(images, every, order, reading())
    seen = []
    for batch in itertools.islice(stream, 2):
        for i, row in enumerate(batch["row"].tolist()):
            if row >= 0:
                assert np.array_equal(images_of(batch)[i], images[row])
                assert batch["label"][i] == every.label[row]
                seen.append(row)
    assert sorted(seen) == order.rows.tolist()


def test_images_survive_another_process(cells, balanced):
    images = PackedImages(cells, balanced[0], 32)
    again = pickle.loads(pickle.dumps(images))
    for row in (0, 29, 30, 40):
        assert np.array_equal(again[row], images[row])


# --- views, and images in memory


def test_each_showing_is_one_of_eight_views_where_that_is_wanted():
    rows = np.arange(4000)
    assert not Order(rows, 0).epoch(3)[1].any()
    order = Order(rows, 0, dihedral=True)
    _, views = order.epoch(3)
    counts = np.bincount(views, minlength=8)
    assert len(counts) == 8
    assert counts.min() > 400
    assert not np.array_equal(order.epoch(4)[1], views)
    assert np.array_equal(Order(rows, 0, dihedral=True).epoch(3)[1], views)


def test_an_epoch_is_the_same_whichever_was_asked_for_before():
    rows = np.arange(50)
    one, other = Order(rows, 7), Order(rows, 7)
    found = [one.epoch(i)[0] for i in (0, 1, 2, 3, 0, 2)]
    expected = [other.epoch(i)[0] for i in (2, 0, 3, 0, 1, 2)]
    assert np.array_equal(found[0], expected[1])
    assert np.array_equal(found[0], found[4])
    assert np.array_equal(found[2], expected[0])
    assert np.array_equal(found[1], expected[4])
    assert len(one._drawn) <= 3, "few of them are remembered"


def test_images_in_memory_are_those_of_the_pack(cells):
    images = PackedImages(cells, None, 32)
    held = pipeline.hold(images, ROWS[::-1])
    assert held.size == 32
    for row in ROWS:
        assert np.array_equal(held[row], images[row])
    assert held.images.shape == (len(ROWS), 32, 32, 3)
    for missing in (0, 29 + 1):
        with pytest.raises(IndexError):
            held[missing]


def test_a_batch_of_resident_images_tells_where_they_lie(cells):
    images = PackedImages(cells, None, 32)
    held = pipeline.hold(images, ROWS)
    order = Order(ROWS, 5, dihedral=True)
    stream = pipeline.training_batches(
        held, cells.table, order, reading(), start=1, resident=True
    )
    for found, sent in zip(
        itertools.islice(stream, 4), training(cells, 4, start=1), strict=True
    ):
        assert "image" not in found
        for name in ("row", "view", "label", "mask"):
            assert np.array_equal(found[name], sent[name])
        position = found.get("position")
        assert position is not None
        real = found["mask"] > 0
        assert np.array_equal(held.images[position[real]], images_of(sent)[real])


def test_views_can_be_asked_for_one_by_one(cells):
    images = PackedImages(cells, None, 32)
    rows, views = np.array([3, 3, 9]), np.array([0, 5, 2], np.int32)
    batches = [
        *pipeline.evaluation_batches(
            images, cells.table, rows, reading(batch_size=2), views=views
        )
    ]
    assert rows_of(batches) == [[3, 3], [9, -1]]
    assert [batch["view"].tolist() for batch in batches] == [[0, 5], [2, 0]]


def test_balanced_sampling_shows_classes_and_patients_as_often():
    label = np.array([1] * 60 + [0] * 20)
    patient = np.array(["1"] * 50 + ["2"] * 10 + ["H1"] * 4 + ["H2"] * 16)
    assert sampling_chances(TrainConfig(), label, patient) is None

    def shown(sampling: Sampling) -> dict[str, float]:
        chances = sampling_chances(TrainConfig(sampling=sampling), label, patient)
        assert chances is not None
        np.testing.assert_allclose(chances.sum(), 1)
        order = Order(np.arange(80), 3, chances=chances)
        epochs = [order.epoch(number)[0] for number in range(200)]
        assert all(len(rows) == 80 for rows in epochs)
        whose = patient[np.concatenate(epochs)]
        return {one: np.mean(whose == one).item() for one in ("1", "2", "H1", "H2")}

    by_class = {"1": 5 / 12, "2": 1 / 12, "H1": 0.1, "H2": 0.4}
    assert shown(Sampling.CLASSES) == pytest.approx(by_class, abs=0.015)
    even = dict.fromkeys(by_class, 0.25)
    assert shown(Sampling.PATIENTS) == pytest.approx(even, abs=0.015)


def test_a_balanced_order_is_the_same_again():
    chances = np.full(10, 0.1)
    one, other = (Order(np.arange(10), 7, chances=chances) for _ in range(2))
    rows = one.epoch(2)[0]
    np.testing.assert_array_equal(rows, other.epoch(2)[0])
    assert len(np.unique(rows)) < 10
