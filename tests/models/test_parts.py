"""Parts of a network give together what the whole gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.config import HeadKind, ModelName
from allcls_jax.models import parts, vgg

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(0, 50, (6, 32, 32, 3)).astype(np.float32)


def build(kind: HeadKind, blocks: int = 5) -> tuple[vgg.VGG, vgg.Params]:
    layers = vgg.conv_stack(ModelName.TINY) + vgg.head(
        kind, 0.5, standardised=vgg.channels(ModelName.TINY, blocks)
    )
    model = vgg.VGG(layers)
    return model, vgg.init_params(vgg.param_shapes(model, 32), seed=3)


def run(model: vgg.VGG, params: vgg.Params, inputs: Any) -> np.ndarray:
    output: Any = model.apply({"params": params}, inputs)
    return np.asarray(output[0])


@pytest.mark.parametrize(
    ("kind", "trained", "last"),
    [
        (HeadKind.FLATTEN, "dense_3", "flatten"),
        (HeadKind.FLATTEN, "block5_conv1", "block4_pool"),
        (HeadKind.GAP, "block2_conv1", "block1_pool"),
        (HeadKind.GAP, "block1_conv1", None),
        (HeadKind.BLOCKS, "standardise_1", "block_averages"),
        (HeadKind.BLOCKS, "block5_conv1", None),
    ],
)
def test_what_training_leaves_ends_before_what_it_changes(kind, trained, last):
    model, params = build(kind)
    mask = {
        layer: dict.fromkeys(arrays, True)
        if layer == trained
        else dict.fromkeys(arrays, False)
        for layer, arrays in params.items()
    }
    fixed, learning = parts.split_at_learning(model, mask)
    assert [layer.name for layer in fixed.layers][-1:] == ([last] if last else [])
    found = run(learning, params, run(fixed, params, IMAGES))
    np.testing.assert_allclose(found, run(model, params, IMAGES), rtol=1e-5, atol=1e-6)


def test_averages_of_blocks_are_logarithms_of_means_side_by_side():
    model, params = build(HeadKind.BLOCKS)
    fixed, _ = parts.split_at_features(model)
    output: Any = fixed.apply({"params": params}, IMAGES)
    found, named = output
    expected = [
        np.log1p(np.asarray(named[f"block{number}_pool"]).mean((1, 2)))
        for number in range(1, 6)
    ]
    np.testing.assert_allclose(found, np.concatenate(expected, -1), rtol=1e-5)
    assert found.shape == (6, 4 + 8 + 8 + 16 + 16)


@pytest.mark.parametrize("blocks", [2, 5])
def test_features_are_standardised_by_the_training_images(blocks: int):
    model, params = build(HeadKind.BLOCKS, blocks)
    features = RNG.gamma(2.0, 3.0, (50, 52)).astype(np.float32)
    features[:, 1] = 7.0  # never varies
    own = parts.standardised(params, features)
    (layer,) = [x for x in model.layers if isinstance(x, vgg.Standardise)]
    found = run(vgg.VGG((layer,)), own, features)
    count = (12, 52)[blocks == 5]
    assert found.shape == (50, count)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    varying = [i for i in range(count) if i != 1]
    np.testing.assert_allclose(found.std(0)[varying], 1, rtol=1e-4)
    assert not found[:, 1].any()
    assert parts.standardised(build(HeadKind.GAP)[1], features).keys() == {
        *build(HeadKind.GAP)[1]
    }


@pytest.mark.parametrize("blocks", [3, 5])
def test_a_folded_network_is_the_same_function(blocks: int):
    model, params = build(HeadKind.BLOCKS, blocks)
    features = run(parts.split_at_features(model)[0], params, IMAGES)
    params = parts.standardised(params, features)
    params["dense_2"]["bias"] = jnp.asarray(RNG.normal(size=256), jnp.float32)
    folded, arrays = parts.folded(model, params)
    assert not any(isinstance(layer, vgg.Standardise) for layer in folded.layers)
    assert folded == vgg.VGG(
        vgg.conv_stack(ModelName.TINY, blocks)
        + vgg.head(HeadKind.BLOCKS, 0.5, blocks=blocks)
    )
    assert jax.tree.map(jnp.shape, arrays) == jax.tree.map(
        lambda leaf: leaf.shape, vgg.param_shapes(folded, 32)
    )
    np.testing.assert_allclose(
        run(folded, arrays, IMAGES), run(model, params, IMAGES), rtol=1e-4, atol=1e-4
    )


def test_other_heads_are_folded_into_themselves():
    model, params = build(HeadKind.FLATTEN)
    assert parts.folded(model, params) == (model, params)
