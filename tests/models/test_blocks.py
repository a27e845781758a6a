"""Max pooling, and the faster block against its plain twin."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.config import HeadKind, ModelName
from allcls_jax.models import blocks, vgg
from allcls_jax.models.preprocessing import CAFFE


def plain_pool(images):
    """As written by its definition: XLA's reduction of windows."""
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, window, "VALID")


def plain_block(images, convolutions):
    for convolution in convolutions:
        images = jax.lax.conv_general_dilated(
            images,
            convolution["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        images = jax.nn.relu(images + convolution["bias"])
    return plain_pool(images)


def draw_block(*channels):
    """Convolutions of these channels, as large as those of a trained network."""
    rng = np.random.default_rng(0)
    return [
        {
            "kernel": rng.normal(0, np.sqrt(2 / 9 / before), (3, 3, before, after)),
            "bias": rng.normal(0, 0.3, after),
        }
        for before, after in itertools.pairwise(channels)
    ]


def draw(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def as_float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def relative(value, expected):
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def operations(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments))


def multiplies_fewer(images, convolutions):
    return "conv_general_dilated" not in operations(
        blocks.winograd, images, convolutions
    )


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 9, 4), (3, 2, 3, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pooling_and_its_gradient_are_those_of_the_definition(shape, dtype):
    images = jnp.asarray(draw(*shape), jnp.float32).astype(dtype)
    np.testing.assert_array_equal(blocks.max_pool(images), plain_pool(images))
    weights = jnp.asarray(draw(*plain_pool(images).shape), jnp.float32)

    def gradient(pool):
        return jax.grad(lambda x: jnp.sum(weights * pool(x)))(images)

    np.testing.assert_array_equal(gradient(blocks.max_pool), gradient(plain_pool))


def test_max_pooling_hides_no_nan():
    images = jnp.zeros((1, 4, 4, 1)).at[0, 3, 2, 0].set(jnp.nan)
    np.testing.assert_array_equal(
        blocks.max_pool(images)[0, ..., 0], [[0, 0], [0, jnp.nan]]
    )


@pytest.mark.parametrize(
    "shape",
    [
        (2, 32, 32),  # 64 tiles an image: all at once
        (7, 40, 48),  # 120 an image: two at a time, and one left
        (4, 64, 64),  # 256 an image: one at a time
        (3, 33, 46),  # a last tile that lies partly or wholly outside
        (1, 70, 67),
        (100, 3, 5),  # images smaller than a tile
    ],
)
def test_a_block_in_fewer_multiplications_is_the_plain_one(shape):
    convolutions = as_float32(draw_block(64, 96, 64))
    images = jnp.abs(draw(*shape, 64))
    assert multiplies_fewer(images, convolutions)
    block = jax.jit(blocks.winograd)(images, convolutions)
    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64),
            (images, convolutions),
        )
        expected = np.asarray(jax.jit(plain_block)(*exact))
    assert block.shape == expected.shape
    assert block.dtype == jnp.float32
    assert relative(block, expected) < 1e-5
    np.testing.assert_allclose(block, expected, rtol=0, atol=1e-4 * expected.max())


@pytest.mark.parametrize("at_once", [False, True])
def test_the_gradient_of_the_faster_block_is_the_plain_ones(at_once):
    convolutions = as_float32(draw_block(64, 64))
    images = jnp.asarray(draw(5, 18, 22, 64))

    def gradients(block):
        def loss(images, convolutions):
            return jnp.sum(block(images, convolutions) ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(images, convolutions)

    faster = functools.partial(blocks.winograd, at_once=at_once)
    assert "conv_general_dilated" not in operations(faster, images, convolutions)
    for value, expected in zip(
        jax.tree.leaves(gradients(faster)),
        jax.tree.leaves(gradients(plain_block)),
        strict=True,
    ):
        assert relative(value, expected) < 1e-4


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((2, 24, 24), (64, 64)), ((8, 32, 32), (8, 64)), ((8, 32, 32), (64, 8))],
    ids=["few tiles", "few channels", "few outputs"],
)
def test_what_would_not_gain_is_computed_plainly(shape, channels):
    convolutions = as_float32(draw_block(*channels))
    images = jnp.asarray(draw(*shape, channels[0]))
    assert not multiplies_fewer(images, convolutions)
    block = jax.jit(blocks.winograd)(images, convolutions)
    np.testing.assert_array_equal(block, jax.jit(plain_block)(images, convolutions))


@pytest.mark.parametrize("train", [False, True])
def test_the_whole_stack_is_the_plain_one(train):
    model = vgg.VGG(vgg.conv_stack(ModelName.VGG19))
    params = vgg.init_params(vgg.param_shapes(model, 64), seed=0)
    levels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3))
    # Smooth at the scale of a few pixels, with black around, as cells are.
    levels = levels.repeat(4, 1).repeat(4, 2)
    levels[:, :8] = levels[:, -8:] = levels[:, :, :8] = levels[:, :, -8:] = 0
    images = CAFFE(levels.astype(np.uint8))

    def run(model):
        apply = jax.jit(lambda p, x: model.apply({"params": p}, x, train=train))
        return apply(params, images)[1]

    faster = run(model)
    plain = run(vgg.VGG(model.layers, plain=True))
    assert set(faster) == {f"block{i}_pool" for i in range(1, 6)} | {"logits"}
    for name, expected in plain.items():
        assert faster[name].dtype == jnp.float32
        # That they differ at all shows that there are two paths.
        assert 0 < relative(faster[name], expected) < 1e-5, name
        limit = 1e-4 * float(expected.max())
        np.testing.assert_allclose(faster[name], expected, rtol=0, atol=limit)


def conv_count(model, images, **apply):
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    text = operations(lambda p, x: model.apply(p, x, **apply), params, images)
    return text.count("conv_general_dilated")


def test_other_types_and_other_devices_take_the_plain_path(monkeypatch):
    layers = vgg.conv_stack(ModelName.VGG16) + vgg.head(HeadKind.GAP, 0.0)
    images = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
    model = vgg.VGG(layers)
    # The first layer has few channels, the last two blocks have few tiles.
    assert conv_count(model, images) == 1 + 3 + 3
    rngs = {"dropout": jax.random.key(0)}
    assert conv_count(model, images, train=True, rngs=rngs) == 1 + 3 + 3
    assert conv_count(vgg.VGG(layers, plain=True), images) == 13
    assert conv_count(vgg.VGG(layers, dtype=jnp.bfloat16), images) == 13
    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 2)
        assert conv_count(model, images) == 13
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert conv_count(model, images) == 13


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_stack_cut_within_a_block_runs_plainly(cut):
    layers = vgg.conv_stack(ModelName.VGG16)[:cut]
    images = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
    assert conv_count(vgg.VGG(layers), images) == sum(
        isinstance(layer, vgg.Conv) for layer in layers
    )
