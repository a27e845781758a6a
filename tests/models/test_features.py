"""Kept features: computed once, found again by what they depend on, never wrong."""

import dataclasses
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.config import HeadKind, ModelName
from allcls_jax.errors import InputError
from allcls_jax.models import features, parts, vgg
from allcls_jax.models.preprocessing import CAFFE, TORCH

SIZE = 32
LAYERS = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.FLATTEN, 0.5)
MODEL = vgg.VGG(LAYERS)
BACKBONE, HEAD = parts.split_at_features(MODEL)
PARAMS = vgg.init_params(vgg.param_shapes(MODEL, SIZE), seed=0)
WIDTH = 16


def open_store(folder: Path, **changes) -> features.FeatureStore:
    arguments = {
        "fixed": BACKBONE,
        "params": PARAMS,
        "preprocessing": CAFFE,
        "image_size": SIZE,
        "source": (SIZE, None),
    } | changes
    return features.open_store(cache_dir=folder, **arguments)


def keys(count: int, view: int = 0) -> list[features.Key]:
    """Hashes, of which some end in zeros as hashes may."""
    return [(bytes([i]) + bytes([i % 3]) * 31, view) for i in range(count)]


def values(count: int, width: int = WIDTH) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, width)).astype(np.float32)


def keep(store: features.FeatureStore, chosen, found) -> None:
    with store.adding() as writer:
        writer.put(chosen, found)


def missing(store: features.FeatureStore, chosen) -> list[int]:
    return store.missing(chosen).tolist()


def test_the_two_parts_of_a_network_are_the_whole():
    rng = np.random.default_rng(0)
    images = CAFFE(rng.integers(0, 256, (4, SIZE, SIZE, 3)).astype(np.uint8))
    whole, named = MODEL.apply({"params": PARAMS}, images)
    found, _ = BACKBONE.apply({"params": PARAMS}, images)
    logits, _ = HEAD.apply({"params": PARAMS}, found)
    assert np.array_equal(np.asarray(found), np.asarray(named["features"]))
    np.testing.assert_allclose(logits, whole, rtol=1e-6)


def test_what_was_kept_is_found_in_any_order_and_by_another_run(tmp_path):
    store, chosen, found = open_store(tmp_path), keys(14), values(14)
    keep(store, chosen[:5], found[:5])
    keep(store, chosen[5:], found[5:])
    shuffled = np.random.default_rng(1).permutation(14)
    for each in (store, open_store(tmp_path)):
        assert missing(each, chosen) == []
        read = each.read([chosen[i] for i in shuffled])
        assert np.array_equal(read, found[shuffled])


def test_only_what_is_not_there_is_missing(tmp_path):
    store = open_store(tmp_path)
    keep(store, keys(3), values(3))
    assert missing(store, keys(5)) == [3, 4]
    assert missing(store, keys(2, view=1)) == [0, 1], "another view is another picture"
    with pytest.raises(AssertionError, match="not all"):
        store.read(keys(4))


def test_two_runs_add_to_one_store(tmp_path):
    one, other = open_store(tmp_path), open_store(tmp_path)
    found = values(8)
    keep(one, keys(8)[:4], found[:4])
    keep(other, keys(8)[2:], found[2:])
    keep(one, keys(1, view=3), found[:1])
    for store in (one, other, open_store(tmp_path)):
        assert missing(store, [*keys(8), *keys(1, view=3)]) == []
        assert np.array_equal(store.read(keys(8)), found)
    (path,) = tmp_path.rglob("values")
    assert path.stat().st_size == 9 * WIDTH * 4, "nothing stands there twice"


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing": TORCH},
        {"preprocessing": dataclasses.replace(CAFFE, normalise_stain=True)},
        {"params": vgg.init_params(vgg.param_shapes(MODEL, SIZE), seed=1)},
        {"fixed": dataclasses.replace(BACKBONE, dtype=jnp.bfloat16)},
        {"image_size": 64},
        {"source": (SIZE, 300)},
    ],
    ids=["preprocessing", "stain", "weights", "dtype", "size", "crop"],
)
def test_what_features_depend_on_is_in_their_key(tmp_path, changes):
    keep(open_store(tmp_path), keys(14), values(14))
    assert len(missing(open_store(tmp_path, **changes), keys(14))) == 14


def test_the_head_is_not_in_the_key(tmp_path):
    keep(open_store(tmp_path), keys(14), values(14))
    params = dict(PARAMS)
    params["dense_2"] = {name: a + 1 for name, a in params["dense_2"].items()}
    assert missing(open_store(tmp_path, params=params), keys(14)) == []


def test_features_are_kept_in_the_type_they_are_computed_in(tmp_path):
    half = dataclasses.replace(BACKBONE, dtype=jnp.bfloat16)
    store = open_store(tmp_path, fixed=half)
    exact = values(3).astype(jnp.bfloat16)
    keep(store, keys(3), exact)
    assert np.array_equal(store.read(keys(3)), exact)
    assert next(tmp_path.rglob("values")).stat().st_size == 3 * WIDTH * 2
    # A mean over places has more digits than what it is taken of.
    pooled = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.GAP, 0.5)
    stack, _ = parts.split_at_features(vgg.VGG(pooled, dtype=jnp.bfloat16))
    assert open_store(tmp_path, fixed=stack).dtype == np.float32


@pytest.mark.parametrize("damage", ["lost", "cut", "flipped", "no index", "bad index"])
def test_damaged_features_are_missing_and_can_be_put_in_their_place(tmp_path, damage):
    chosen, found = keys(14), values(14)
    keep(open_store(tmp_path), chosen, found)
    (path,) = tmp_path.rglob("values")
    (index,) = tmp_path.rglob("index")
    content, records = path.read_bytes(), index.read_bytes()
    size = len(content) // 14
    gone = list(range(14))
    match damage:
        case "lost":
            path.unlink()
        case "cut":
            path.write_bytes(content[: 10 * size + 5])
            gone = [10, 11, 12, 13]
        case "flipped":
            flipped = bytearray(content)
            flipped[3 * size] ^= 1
            path.write_bytes(flipped)
            gone = [3]
        case "no index":
            index.unlink()
        case "bad index":
            flipped = bytearray(records)
            flipped[3 * len(records) // 14] ^= 255
            index.write_bytes(flipped)
            gone = [3]
    store = open_store(tmp_path)
    assert missing(store, chosen) == gone
    keep(store, [chosen[i] for i in gone], found[gone])
    for again in (store, open_store(tmp_path)):
        assert missing(again, chosen) == []
        assert np.array_equal(again.read(chosen), found)


def test_a_record_that_was_being_written_does_not_count(tmp_path):
    keep(open_store(tmp_path), keys(4), values(4))
    (index,) = tmp_path.rglob("index")
    index.write_bytes(index.read_bytes()[:-7])
    store = open_store(tmp_path)
    assert missing(store, keys(4)) == [3]
    keep(store, keys(4)[3:], values(4)[3:])
    assert np.array_equal(open_store(tmp_path).read(keys(4)), values(4))


def test_values_larger_than_a_block_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_BLOCK", 3 * WIDTH * 4)
    store = open_store(tmp_path)
    keep(store, keys(14), values(14))
    assert missing(store, keys(16)) == [14, 15]
    assert np.array_equal(store.read(keys(14)), values(14))


def test_a_cache_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "features").write_text("in the way")
    with pytest.raises(InputError, match="cache_features=false"):
        open_store(tmp_path)


def test_a_disk_that_is_full_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    store = open_store(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left.*cache_dir"):
        keep(store, keys(2), values(2))
    assert missing(open_store(tmp_path), keys(2)) == [0, 1], "nothing counts"
