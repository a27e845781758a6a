"""The VGG table: golden counts, the paper's layers, numbers against plain NumPy."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.config import HeadKind, ModelName
from allcls_jax.data import stain
from allcls_jax.models import parts, vgg
from allcls_jax.models.preprocessing import (
    CAFFE,
    TORCH,
    preprocessing_from_json,
)
from allcls_jax.models.vgg import LayerRow

# Of the convolutional part; the paper's head at 224 px; Keras' network with its top.
GOLDEN = {
    ModelName.VGG16: (14_714_688, 21_137_986, 138_357_544),
    ModelName.VGG19: (20_024_384, 26_447_682, 143_667_240),
    ModelName.TINY: (4_480, 4_480 + 201_474, None),
}


def count(layers, image_size=224):
    """Parameters of the arrays that Flax makes, not those of the table."""
    shapes = vgg.param_shapes(vgg.VGG(layers), image_size)
    return sum(array.size for array in jax.tree.leaves(shapes))


def test_every_variant_has_golden_counts():
    assert set(GOLDEN) == set(vgg.BLOCKS) == set(ModelName)


@pytest.mark.parametrize("name", ModelName)
def test_parameter_counts_are_golden(name):
    stack, with_head, with_top = GOLDEN[name]
    head = vgg.head(HeadKind.FLATTEN, 0.5)
    assert count(vgg.conv_stack(name)) == stack
    assert count(vgg.conv_stack(name) + head) == with_head
    if with_top is not None:
        assert count(vgg.conv_stack(name) + vgg.imagenet_top()) == with_top


def test_the_layer_table_is_the_papers():
    layers = vgg.conv_stack(ModelName.VGG19) + vgg.head(HeadKind.FLATTEN, 0.5)
    table = vgg.layer_table(layers, 224)
    assert len(table) == 26
    assert table[0] == LayerRow("input_1", (224, 224, 3), 0)
    assert table[1] == LayerRow("block1_conv1", (224, 224, 64), 1_792)
    assert table[3] == LayerRow("block1_pool", (112, 112, 64), 0)
    assert table[9] == LayerRow("block3_conv3", (56, 56, 256), 590_080)
    assert table[12] == LayerRow("block4_conv1", (28, 28, 512), 1_180_160)
    assert table[21:] == [
        LayerRow("block5_pool", (7, 7, 512), 0),
        LayerRow("flatten", (25_088,), 0),
        LayerRow("dense_2", (256,), 6_422_784),
        LayerRow("dropout_1", (256,), 0),
        LayerRow("dense_3", (2,), 514),
    ]
    assert sum(row.parameters for row in table) == 26_447_682


@pytest.mark.parametrize("kind", HeadKind)
@pytest.mark.parametrize("name", [ModelName.TINY, ModelName.VGG16])
def test_the_table_agrees_with_what_flax_makes(name, kind):
    layers = vgg.conv_stack(name) + vgg.head(kind, 0.5)
    model = vgg.VGG(layers)
    params = vgg.param_shapes(model, 64)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    logits, named = jax.eval_shape(
        lambda p, x: model.apply({"params": p}, x), params, images
    )
    rows = {row.name: row for row in vgg.layer_table(layers, 64)}
    for layer, arrays in params.items():
        assert rows[layer].parameters == sum(a.size for a in arrays.values())
    for block in range(1, 6):
        assert named[f"block{block}_pool"].shape[1:] == rows[f"block{block}_pool"].shape
    assert named["features"].shape == (2, rows[layers[-4].name].shape[0])
    assert named["logits"].shape == logits.shape == (2, 2)


def random_params(layers, image_size):
    """He-like kernels, and biases that are not the zeros they begin as."""
    shapes = vgg.param_shapes(vgg.VGG(layers), image_size)
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes)


def apply(layers, params, images, **options):
    model = vgg.VGG(layers, **options)
    return jax.jit(lambda p, x: model.apply({"params": p}, x))(params, images)


def naive_network(params, image):
    """The tiny network in NumPy, written from its definition."""
    x = image.astype(np.float64)
    for block in range(1, 6):
        kernel, bias = (
            np.asarray(params[f"block{block}_conv1"][name], np.float64)
            for name in ("kernel", "bias")
        )
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        height, width = x.shape[:2]
        x = bias + sum(
            padded[i : i + height, j : j + width] @ kernel[i, j]
            for i in range(3)
            for j in range(3)
        )
        x = np.maximum(x, 0)
        x = x.reshape(height // 2, 2, width // 2, 2, -1).max((1, 3))
    x = x.reshape(-1)
    for name in ("dense_2", "dense_3"):
        x = x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        x = np.maximum(x, 0) if name == "dense_2" else x
    return x


def test_logits_equal_a_network_written_out():
    layers = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.FLATTEN, 0.5)
    params = random_params(layers, 64)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    logits, _ = apply(layers, params, images)
    expected = [naive_network(params, image) for image in images]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_initial_parameters_are_those_of_their_names_and_of_the_right_size():
    layers = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.FLATTEN, 0.5)
    shapes = vgg.param_shapes(vgg.VGG(layers), 224)
    params = vgg.init_params(shapes, seed=3)
    kernel = np.asarray(params["block5_conv1"]["kernel"])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 16)), rtol=0.05)
    dense = np.asarray(params["dense_2"]["kernel"])
    np.testing.assert_allclose(np.abs(dense).max(), np.sqrt(6 / (784 + 256)), rtol=1e-3)
    assert not np.any(params["dense_2"]["bias"])
    without_head = vgg.param_shapes(vgg.VGG(layers[:10]), 224)
    again = vgg.init_params(without_head, seed=3)
    np.testing.assert_array_equal(again["block5_conv1"]["kernel"], kernel)
    other = vgg.init_params(without_head, seed=4)
    assert not np.array_equal(other["block5_conv1"]["kernel"], kernel)


def test_dropout_drops_in_training_only():
    layers = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.GAP, 0.5)
    model = vgg.VGG(layers)
    params = random_params(layers, 32)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)

    @partial(jax.jit, static_argnums=1)
    def logits(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, images, train=train, rngs=rngs)[0]

    assert np.array_equal(logits(0, False), logits(1, False))
    assert not np.array_equal(logits(0, True), logits(1, True))


def drop(rate=None, *, table=0.5, seed=0, units=100_000):
    """What a dropout layer makes of ones in training."""
    model = vgg.VGG((vgg.Dropout("dropout_1", table),))
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply({}, jnp.ones(units), train=True, dropout=rate, rngs=rngs)[0]


@pytest.mark.parametrize(("rate", "table"), [(None, 0.3), (0.3, 0.9)])
def test_dropout_drops_its_rate_and_scales_the_others_up(rate, table):
    dropped = np.asarray(drop(rate, table=table))
    np.testing.assert_allclose(np.mean(dropped == 0), 0.3, atol=0.01)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.7, rtol=1e-6)
    assert not np.array_equal(dropped, drop(rate, table=table, seed=1))


def test_a_rate_known_when_it_runs_gives_the_masks_of_one_known_before():
    rates = jnp.array([0.0, 0.1, 0.3, 0.7])
    together = jax.jit(jax.vmap(drop))(rates)
    for rate, dropped in zip((0.0, 0.1, 0.3, 0.7), together, strict=True):
        np.testing.assert_array_equal(dropped, drop(table=rate))
    assert np.all(together[0] == 1)


def test_dropout_scales_the_gradient_of_what_stays():
    model = vgg.VGG((vgg.Dropout("dropout_1", 0.75),))
    rngs = {"dropout": jax.random.key(0)}
    values = jnp.arange(1.0, 101.0)
    gradient = jax.grad(lambda x: model.apply({}, x, train=True, rngs=rngs)[0].sum())(
        values
    )
    dropped, _ = model.apply({}, values, train=True, rngs=rngs)
    np.testing.assert_array_equal(gradient, np.where(dropped == 0, 0, 4))


def test_a_head_alone_drops_what_it_drops_in_the_whole_network():
    layers = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.FLATTEN, 0.5)
    model = vgg.VGG(layers)
    backbone, alone = parts.split_at_features(model)
    params = random_params(layers, 32)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    features, _ = backbone.apply({"params": params}, images)

    def logits(network, inputs, **options):
        rngs = {"dropout": jax.random.key(5)}
        variables = {"params": params}
        return network.apply(variables, inputs, train=True, rngs=rngs, **options)[0]

    for options in ({}, {"dropout": 0.2}):
        whole = logits(model, images, **options)
        np.testing.assert_allclose(
            logits(alone, features, **options), whole, rtol=1e-5, atol=1e-6
        )
    assert not np.allclose(logits(model, images), whole)


def test_bfloat16_computes_the_stack_and_leaves_the_head_in_float32():
    layers = vgg.conv_stack(ModelName.TINY) + vgg.head(HeadKind.FLATTEN, 0.5)
    params = random_params(layers, 32)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    exact, _ = apply(layers, params, images)
    half, named = apply(layers, params, images, dtype=jnp.bfloat16)
    assert named["block5_pool"].dtype == jnp.bfloat16
    assert named["features"].dtype == half.dtype == jnp.float32
    assert params["block1_conv1"]["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(half, exact, rtol=0.1, atol=0.05)
    assert not np.array_equal(half, exact)


NORMALISED = dataclasses.replace(CAFFE, normalise_stain=True)


@pytest.mark.parametrize("preprocessing", [CAFFE, TORCH, NORMALISED])
def test_preprocessing_survives_its_file_form(preprocessing):
    assert preprocessing_from_json(preprocessing.to_json()) == preprocessing


def test_preprocessing_values():
    images = jnp.array([[[[10, 20, 30]]]], jnp.uint8)
    np.testing.assert_allclose(
        CAFFE(images)[0, 0, 0], [30 - 103.939, 20 - 116.779, 10 - 123.68], rtol=1e-6
    )
    expected = (np.array([10, 20, 30]) / 255 - [0.485, 0.456, 0.406]) / [
        0.229,
        0.224,
        0.225,
    ]
    np.testing.assert_allclose(TORCH(images)[0, 0, 0], expected, rtol=1e-5)


def test_preprocessing_of_a_file_without_stain_normalisation_has_none():
    fields = json.loads(NORMALISED.to_json())
    assert fields.pop("normalise_stain") is True
    assert preprocessing_from_json(json.dumps(fields)) == CAFFE


def test_cells_are_normalised_before_channels_are_reordered():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    expected = CAFFE(stain.normalise(images))
    assert np.array_equal(NORMALISED(images), expected)
    assert not np.allclose(NORMALISED(images), CAFFE(images), atol=1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"channel_order": "gbr"}',
        "[1]",
        CAFFE.to_json().replace("false", '"yes"'),
    ],
)
def test_preprocessing_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="preprocessing"):
        preprocessing_from_json(text)
