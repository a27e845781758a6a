"""Kept features: computed once, the same as computed anew, found again by their key."""

import copy
import dataclasses
import itertools
import pickle

import jax
import numpy as np
import pytest

from allcls_jax.config import DataConfig, HeadKind, ModelName, SyntheticConfig
from allcls_jax.data import pipeline
from allcls_jax.data.pipeline import Images, Reading
from allcls_jax.data.prepare import open_cells
from allcls_jax.errors import InputError
from allcls_jax.models import features, vgg
from allcls_jax.models.preprocessing import CAFFE, TORCH

SIZE = 32
LAYERS = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.FLATTEN, 0.5)
MODEL = vgg.VGG(LAYERS)
BACKBONE, HEAD = vgg.split_at_features(MODEL)
PARAMS = vgg.init_params(vgg.param_shapes(MODEL, SIZE), seed=0)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    config = DataConfig(synthetic=SyntheticConfig(num_images=14, num_patients=12))
    return open_cells(config, pack_size=SIZE, cache_dir=tmp_path_factory.mktemp("c"))


def open_features(cells, folder, **changes):
    arguments = {
        "backbone": BACKBONE,
        "params": PARAMS,
        "preprocessing": CAFFE,
        "image_size": SIZE,
    } | changes
    return features.open_features(cells, cache_dir=folder, **arguments)


@jax.jit
def forward(images):
    return BACKBONE.apply({"params": PARAMS}, CAFFE(images))[0]


def batches(cells, rows):
    images = Images(cells, SIZE)
    return pipeline.evaluation_batches(images, cells.table, rows, Reading(batch_size=4))


def compute(kept, cells, rows):
    """Computes features and returns how many images that took."""
    done = []
    features.compute(
        kept,
        batches(cells, rows),
        lambda batch: (forward(batch.get("image")), batch["row"]),
        done.append,
    )
    return sum(done)


def expected(cells, rows):
    return np.asarray(forward(np.stack([cells[row] for row in rows])))


def test_the_two_parts_of_a_network_are_the_whole(cells):
    images = np.stack([cells[row] for row in range(4)])
    whole, named = MODEL.apply({"params": PARAMS}, CAFFE(images))
    values, _ = BACKBONE.apply({"params": PARAMS}, CAFFE(images))
    logits, _ = HEAD.apply({"params": PARAMS}, values)
    assert np.array_equal(np.asarray(values), np.asarray(named["features"]))
    np.testing.assert_allclose(logits, whole, rtol=1e-6)


def test_only_missing_rows_are_computed_and_all_are_kept(cells, tmp_path):
    kept = open_features(cells, tmp_path)
    first, rows = np.array([1, 2, 5]), np.arange(14)
    assert compute(kept, cells, kept.missing(first)) == 3
    again = open_features(cells, tmp_path)
    assert again.missing(rows).tolist() == [0, 3, 4, *range(6, 14)]
    assert compute(again, cells, again.missing(rows)) == 11
    assert not len(open_features(cells, tmp_path).missing(rows))
    found = np.stack([again[row] for row in range(14)])
    np.testing.assert_allclose(found, expected(cells, rows), rtol=1e-5, atol=1e-5)


def test_a_computation_that_was_cut_goes_on(cells, tmp_path):
    kept = open_features(cells, tmp_path)

    def cut(batch):
        if 8 in batch["row"]:
            raise KeyboardInterrupt
        return forward(batch.get("image")), batch["row"]

    with pytest.raises(KeyboardInterrupt):
        features.compute(kept, batches(cells, np.arange(14)), cut, lambda count: None)
    again = open_features(cells, tmp_path)
    assert again.missing(np.arange(14)).tolist() == list(range(4, 14))


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing": TORCH},
        {"params": vgg.init_params(vgg.param_shapes(MODEL, SIZE), seed=1)},
        {"backbone": dataclasses.replace(BACKBONE, dtype=jax.numpy.bfloat16)},
        {"image_size": 64},
    ],
    ids=["preprocessing", "weights", "dtype", "size"],
)
def test_what_features_depend_on_is_in_their_key(cells, tmp_path, changes):
    kept = open_features(cells, tmp_path)
    compute(kept, cells, np.arange(14))
    other = open_features(cells, tmp_path, **changes)
    assert len(other.missing(np.arange(14))) == 14


def test_the_head_is_not_in_the_key(cells, tmp_path):
    kept = open_features(cells, tmp_path)
    compute(kept, cells, np.arange(14))
    params = dict(PARAMS)
    params["dense_2"] = jax.tree.map(lambda a: a + 1, params["dense_2"])
    assert not len(open_features(cells, tmp_path, params=params).missing(np.arange(14)))


@pytest.mark.parametrize("damage", ["lost", "cut", "flipped"])
def test_damaged_features_are_computed_again(cells, tmp_path, damage):
    rows = np.arange(14)
    kept = open_features(cells, tmp_path)
    compute(kept, cells, rows)
    (path,) = tmp_path.rglob("features.f32")
    content = path.read_bytes()
    size = len(content) // 14
    if damage == "lost":
        path.unlink()
        gone = rows.tolist()
    elif damage == "cut":
        path.write_bytes(content[: 10 * size])
        gone = rows[10:].tolist()
    else:
        flipped = bytearray(content)
        flipped[3 * size] ^= 1
        path.write_bytes(flipped)
        gone = [3]
    again = open_features(cells, tmp_path)
    missing = again.missing(rows)
    assert missing.tolist() == gone
    compute(again, cells, missing)
    assert path.read_bytes() == content


def test_features_are_of_the_images_not_of_their_rows(cells, tmp_path, monkeypatch):
    """A pack with other images in its rows has other features, whatever its stamp."""
    compute(open_features(cells, tmp_path), cells, np.arange(14))
    other = copy.copy(cells)
    other.table = cells.table.take(np.arange(14)[::-1])
    assert len(open_features(other, tmp_path).missing(np.arange(14))) == 14


def test_rows_that_were_not_computed_are_not_zeros(cells, tmp_path):
    kept = open_features(cells, tmp_path)
    with pytest.raises(AssertionError, match="row 3"):
        kept[3]


def test_another_process_maps_the_same_file(cells, tmp_path):
    kept = open_features(cells, tmp_path)
    compute(kept, cells, np.arange(14))
    copied = pickle.dumps(kept)
    assert len(copied) < 1000
    assert np.array_equal(pickle.loads(copied)[5], kept[5])


def test_batches_of_features_are_those_of_the_same_rows(cells, tmp_path):
    kept = open_features(cells, tmp_path)
    rows = np.arange(14)
    compute(kept, cells, rows)
    reading = Reading(batch_size=4)
    streams = [
        pipeline.training_batches(given, cells.table, rows, reading, seed=1)
        for given in (Images(cells, SIZE), kept)
    ]
    for images, values in itertools.islice(zip(*streams, strict=True), 5):
        assert np.array_equal(images["row"], values["row"])
        real = values["mask"] > 0
        np.testing.assert_allclose(
            values.get("features")[real],
            expected(cells, values["row"][real]),
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_cache_that_cannot_be_written_is_an_error_with_a_remedy(cells, tmp_path):
    (tmp_path / "features").write_text("in the way")
    with pytest.raises(InputError, match="cache_features=false"):
        open_features(cells, tmp_path)
