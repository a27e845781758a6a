"""Batches: every image once, the same stream however it is read, any beginning."""

import itertools
import pickle

import numpy as np
import pytest

from allcls_jax.config import DataConfig, SyntheticConfig
from allcls_jax.data import pipeline, transforms
from allcls_jax.data.cells import ALL, CellTable
from allcls_jax.data.copies import TurnedCopies, balance
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.pipeline import Batch, Images, Inputs, Joined, Reading
from allcls_jax.data.prepare import open_cells
from allcls_jax.models.features import Features


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> PackedCells:
    config = DataConfig(synthetic=SyntheticConfig(num_images=30, num_patients=12))
    cache = tmp_path_factory.mktemp("cache")
    return open_cells(config, pack_size=40, cache_dir=cache)


ROWS = np.array([3, 4, 5, 9, 10, 11, 12, 20, 21, 29])


def reading(**options) -> Reading:
    return Reading(**({"batch_size": 4} | options))


def training(cells, count, start=0, **options) -> list[Batch]:
    stream = pipeline.training_batches(
        Images(cells, 32), cells.table, ROWS, reading(**options), seed=5, start=start
    )
    return list(itertools.islice(stream, count))


def evaluation(cells, rows, reading) -> list[Batch]:
    images = Images(cells, 32)
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
    other = pipeline.training_batches(
        Images(cells, 32), cells.table, ROWS, reading(), seed=6
    )
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


def joined_images(cells, balanced) -> Joined:
    return Joined(Images(cells, 32), Images(balanced[0], 32), len(cells))


def joined_features(cells, balanced, folder) -> Joined:
    """Features whose first value tells the image: 100 up for copies."""
    both = []
    for name, number, first in (("upper", 30, 0), ("lower", len(balanced[0]), 100)):
        kept = Features(folder / name, number, 5)
        values = first + np.arange(number)[:, None] + np.zeros(5)
        kept.put(np.arange(number), values.astype(np.float32))
        both.append(kept)
    return Joined(both[0], both[1], len(cells))


def check_joined(joined: Inputs, other: Inputs) -> None:
    assert (joined.name, joined.shape, joined.dtype) == (
        other.name,
        other.shape,
        other.dtype,
    )


def test_joined_images_are_those_of_both_tables(cells, balanced):
    found, every = balanced
    joined = joined_images(cells, balanced)
    check_joined(joined, Images(cells, 32))
    assert len(every) == 30 + len(found) == 30 + 11
    for row in range(30):
        assert np.array_equal(joined[row], transforms.resize(cells[row], 32))
    for row in range(11):
        assert np.array_equal(joined[30 + row], transforms.resize(found[row], 32))
    with pytest.raises(IndexError):
        joined[41]


def test_batches_of_joined_images_hold_what_their_rows_say(cells, balanced):
    joined, (_, every) = joined_images(cells, balanced), balanced
    rows = np.array([0, 29, 30, 31, 40])
    stream = pipeline.training_batches(joined, every, rows, reading(), seed=1)
    seen = []
    for batch in itertools.islice(stream, 2):
        for i, row in enumerate(batch["row"].tolist()):
            if row >= 0:
                assert np.array_equal(images_of(batch)[i], joined[row])
                assert batch["label"][i] == every.label[row]
                seen.append(row)
    assert sorted(seen) == rows.tolist()


def test_batches_of_joined_features_hold_what_their_rows_say(cells, balanced, tmp_path):
    joined, (found, every) = joined_features(cells, balanced, tmp_path), balanced
    check_joined(joined, Features(tmp_path / "upper", 30, 5))
    batches = pipeline.evaluation_batches(joined, every, np.arange(41), reading())
    seen = []
    for batch in batches:
        values = batch.get("features")
        assert values is not None
        assert values.shape == (4, 5)
        seen += values[batch["mask"] > 0, 0].tolist()
    assert seen == [*range(30), *range(100, 100 + len(found))]


def test_joined_inputs_survive_another_process(cells, balanced, tmp_path):
    images = joined_images(cells, balanced)
    features = joined_features(cells, balanced, tmp_path)
    for joined in (images, features):
        again: Joined = pickle.loads(pickle.dumps(joined))
        for row in (0, 29, 30, 40):
            assert np.array_equal(again[row], joined[row])
