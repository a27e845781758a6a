"""Maps beside the same computed otherwise: by hand, in float64, or known beforehand."""

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.config import HeadKind, ModelName
from allcls_jax.data import stain
from allcls_jax.errors import InputError
from allcls_jax.models import blocks, vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.models.preprocessing import CAFFE, Preprocessing
from allcls_jax.serving.explanation import attribution
from allcls_jax.serving.explanation.attribution import attribute
from allcls_jax.serving.explanation.settings import Method, Settings

SIZE = 32
TEMPERATURE = 1.7


def cells(n: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Noisy discs on black."""
    rng = np.random.default_rng(seed)
    away = np.hypot(*(np.indices((size, size)) - size / 2 + 0.5))
    image = rng.integers(40, 256, (n, size, size, 3), np.uint8)
    return image * (away < size / 3)[..., None].astype(np.uint8)


def classifier(
    *layers: vgg.Layer,
    seed: int = 3,
    size: int = SIZE,
    preprocessing: Preprocessing = CAFFE,
    dtype: object = jnp.float32,
) -> Classifier:
    layers = layers or (
        *vgg.conv_stack(ModelName.TINY),
        *vgg.head(HeadKind.FLATTEN, 0.0),
    )
    model = vgg.VGG(layers, dtype=dtype)
    params = vgg.init_params(vgg.param_shapes(model, size), seed=seed)
    # A bias that is 0 would hide that it was forgotten.
    rng = np.random.default_rng(seed)
    for arrays in params.values():
        arrays["bias"] = jnp.asarray(
            rng.normal(0, 0.1, arrays["bias"].shape), jnp.float32
        )
    return Classifier(model, params, preprocessing, size, TEMPERATURE)


def forward(
    network: Classifier,
    x: np.ndarray,
    layers: tuple[vgg.Layer, ...] | None = None,
    pooled: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """The layers in float64, written out with NumPy.

    Outputs of poolings are added to `pooled`, which has those of the layers before.
    """
    pooled = {} if pooled is None else pooled
    for layer in network.model.layers if layers is None else layers:
        own = network.params.get(layer.name, {})
        kernel, bias = (np.asarray(own.get(k, 0), float) for k in ("kernel", "bias"))
        match layer:
            case vgg.Conv():
                padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
                h, w = x.shape[1:3]
                x = bias + sum(
                    padded[:, i : i + h, j : j + w] @ kernel[i, j]
                    for i, j in itertools.product(range(3), range(3))
                )
                x = np.maximum(x, 0)
            case vgg.MaxPool():
                n, h, w, c = x.shape
                x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
                pooled[layer.name] = x
            case vgg.BlockAverages(_, poolings):
                # Before a block all pictures are the same one.
                means = [pooled[name].mean((1, 2)) for name in poolings]
                means = [np.broadcast_to(m, (len(x), m.shape[1])) for m in means]
                x = np.log1p(np.concatenate(means, 1))
            case vgg.Flatten():
                x = x.reshape(len(x), -1)
            case vgg.GlobalAveragePool():
                x = x.mean((1, 2))
            case vgg.Dense(_, _, relu):
                x = x @ kernel + bias
                x = np.maximum(x, 0) if relu else x
    return x


def preprocessed(network: Classifier, images: np.ndarray) -> np.ndarray:
    order = slice(None, None, -1 if network.preprocessing.channel_order == "bgr" else 1)
    values = np.asarray(images, float)[..., order]
    return (values - network.preprocessing.mean) * network.preprocessing.scale


def log_odds(
    network: Classifier,
    x: np.ndarray,
    layers: tuple[vgg.Layer, ...] | None = None,
    pooled: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    logits = forward(network, x, layers, dict(pooled or {}))
    return (logits[:, 1] - logits[:, 0]) / TEMPERATURE


def slopes(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences by every value of one x."""
    moved = np.eye(x.size).reshape(x.size, *x.shape) * step
    return ((function(x + moved) - function(x - moved)) / (2 * step)).reshape(x.shape)


def activations_and_slopes(
    network: Classifier, image: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the last convolution of a block, and the log odds' slopes there."""
    layers = network.model.layers
    names = [layer.name for layer in layers]
    cut = names.index(f"block{block}_pool")
    pooled: dict[str, np.ndarray] = {}
    inputs = preprocessed(network, image[None])
    values = forward(network, inputs, layers[:cut], pooled)[0]
    return values, slopes(lambda x: log_odds(network, x, layers[cut:], pooled), values)


def without_ties(
    block: int, head: HeadKind = HeadKind.FLATTEN
) -> tuple[Classifier, np.ndarray]:
    """A network and a picture at which the log odds have one slope for each activation.

    Two equal activations under one pooling have many; on black, and where ReLU gives 0,
    they are the rule.
    """
    network = classifier(*vgg.conv_stack(ModelName.TINY), *vgg.head(head, 0.0))
    for name, arrays in network.params.items():
        if name.startswith(f"block{block}_"):
            arrays["bias"] += 10
    rng = np.random.default_rng(5)
    return network, rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def upsampled(coarse: np.ndarray, size: int) -> np.ndarray:
    """Between the middles of pixels, linearly in both directions."""
    side = len(coarse)
    middles = (np.arange(size) + 0.5) * side / size - 0.5
    rows = np.stack([np.interp(middles, np.arange(side), c) for c in coarse.T], 1)
    return np.stack([np.interp(middles, np.arange(side), r) for r in rows])


def signs(*values: int) -> np.ndarray:
    return np.array(values, float)


@pytest.mark.parametrize(
    ("block", "head"),
    [
        (3, HeadKind.FLATTEN),
        (4, HeadKind.FLATTEN),
        (5, HeadKind.FLATTEN),
        (4, HeadKind.BLOCKS),
    ],
)
def test_gradcam_is_that_of_finite_differences(block, head):
    network, image = without_ties(block, head)
    maps = attribute(
        network, np.stack([image] * 2), signs(1, -1), Settings(block=block)
    )
    values, slope = activations_and_slopes(network, image, block)
    speaking = (values * slope.mean((0, 1))).sum(-1)
    expected = np.stack(
        [upsampled(np.maximum(sign * speaking, 0), SIZE) for sign in (1, -1)]
    )
    assert expected.max() > 0
    np.testing.assert_allclose(maps.values, expected, atol=1e-4 * expected.max())
    known = log_odds(network, preprocessed(network, image[None]))
    np.testing.assert_allclose(maps.log_odds, [*known, *known], rtol=1e-4)


@pytest.mark.parametrize("block", [4, 5])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradcam_plus_is_the_formula_of_its_paper(block, sign):
    """With the exponential of the log odds for the score, of which all derivatives are
    known; the map's scale is left free."""
    network, image = without_ties(block)
    settings = Settings(method=Method.GRADCAM_PLUS, block=block)
    found = attribute(network, image[None], signs(sign), settings).values[0]
    values, slope = activations_and_slopes(network, image, block)
    score = np.exp(log_odds(network, preprocessed(network, image[None])) * sign)
    first, second, third = (score * (sign * slope) ** k for k in (1, 2, 3))
    below = 2 * second + values.sum((0, 1)) * third
    alpha = np.divide(second, below, out=np.zeros_like(below), where=below != 0)
    weights = (alpha * np.maximum(first, 0)).sum((0, 1))
    expected = upsampled(np.maximum((values * weights).sum(-1), 0), SIZE)
    assert expected.max() > 0
    np.testing.assert_allclose(
        found / found.max(), expected / expected.max(), atol=1e-4
    )


def test_gradcam_before_global_pooling_is_the_class_activation_map():
    """Zhou et al.: there the maps weighted by the class's own weights."""
    network = classifier(
        vgg.Conv("block5_conv1", 6),
        vgg.GlobalAveragePool("pooling"),
        vgg.Dense("dense_3", 2, relu=False),
    )
    images = cells(3)
    maps = attribute(network, images, signs(1, -1, 1), Settings())
    kernel = np.asarray(network.params["dense_3"]["kernel"], float)
    values = forward(network, preprocessed(network, images), network.model.layers[:1])
    weights = (kernel[:, 1] - kernel[:, 0]) / TEMPERATURE / SIZE**2
    for i, sign in enumerate((1, -1, 1)):
        expected = np.maximum(sign * values[i] @ weights, 0)
        assert expected.max() > 0
        np.testing.assert_allclose(
            maps.values[i], expected, atol=1e-5 * expected.max(), rtol=1e-4
        )


LINEAR = (vgg.Flatten("flatten"), vgg.Dense("dense_3", 2, relu=False))
UNEVEN = Preprocessing("bgr", (100.0, 110.0, 120.0), (0.01, 0.02, 0.03))


def test_integrated_gradients_of_a_linear_network_are_weight_times_value():
    network = classifier(*LINEAR, preprocessing=UNEVEN)
    images = cells(2)
    settings = Settings(method=Method.INTEGRATED_GRADIENTS, steps=200)
    maps = attribute(network, images, signs(1, -1), settings)
    kernel = np.asarray(network.params["dense_3"]["kernel"], float)
    weights = (kernel[:, 1] - kernel[:, 0]).reshape(SIZE, SIZE, 3) / TEMPERATURE
    by_colour = (weights * UNEVEN.scale)[..., ::-1]  # of red, green and blue
    expected = (images * by_colour).sum(-1) * signs(1, -1)[:, None, None]
    np.testing.assert_allclose(maps.values, expected, rtol=1e-4, atol=1e-5)
    assert maps.black is not None
    np.testing.assert_allclose(
        maps.values.sum((1, 2)), (maps.log_odds - maps.black) * [1, -1], atol=1e-3
    )


@pytest.mark.parametrize("method", Method)
def test_normalised_cells_are_explained_as_the_network_sees_them(method: Method):
    stained = dataclasses.replace(CAFFE, normalise_stain=True)
    network, images = classifier(preprocessing=stained), cells(2)
    settings = Settings(method=method)
    maps = attribute(network, images, signs(1, -1), settings)
    seen = np.asarray(stain.normalise(images))
    plain = dataclasses.replace(network, preprocessing=CAFFE)
    expected = attribute(plain, seen, signs(1, -1), settings)
    np.testing.assert_array_equal(maps.values, expected.values)
    own = network.log_odds(network.logits(images))
    np.testing.assert_allclose(maps.log_odds, own, atol=1e-4)
    np.testing.assert_array_equal(
        attribution.log_odds_of(network, images), attribution.log_odds_of(plain, seen)
    )


def test_integrated_gradients_are_finite_differences_along_the_path():
    network, image = classifier(), cells(1)[0]
    steps = 4
    settings = Settings(method=Method.INTEGRATED_GRADIENTS, steps=steps)
    maps = attribute(network, image[None], signs(-1), settings, batch_size=4)
    found = maps.values[0]
    step = 1e-5
    for row, column in ((16, 16), (10, 20), (22, 13)):
        total = 0.0
        for t in (np.arange(steps) + 0.5) / steps:
            for colour in range(3):
                moved = np.zeros((2, *image.shape))
                moved[:, row, column, colour] = step, -step
                both = preprocessed(network, t**3 * image + moved)
                up, down = log_odds(network, both)
                slope = (up - down) / (2 * step)
                total -= slope * image[row, column, colour] * 3 * t**2
        assert found[row, column] == pytest.approx(
            total / steps, rel=2e-3, abs=2e-4 * float(np.abs(found).max())
        )


def test_integrated_gradients_add_up_to_the_difference_from_black():
    network, images = classifier(), cells(3)
    settings = Settings(method=Method.INTEGRATED_GRADIENTS, steps=400)
    maps = attribute(network, images, signs(1, 1, -1), settings)
    assert maps.black == pytest.approx(
        log_odds(network, preprocessed(network, 0 * images[:1]))[0], rel=1e-4
    )
    expected = (maps.log_odds - maps.black) * [1, 1, -1]
    np.testing.assert_allclose(maps.values.sum((1, 2)), expected, rtol=0.02)
    assert not maps.values[~images.any(-1)].any()


@pytest.mark.parametrize(("patch", "stride"), [(None, None), (7, 5), (32, 32), (1, 1)])
def test_occlusion_is_a_loop_over_all_squares(patch, stride):
    size = 16 if patch == 1 else SIZE
    network = classifier(*_shallow(), size=size)
    images = cells(3, size)
    settings = Settings(method=Method.OCCLUSION, patch=patch, stride=stride)
    advanced: list[int] = []
    maps = attribute(
        network, images, signs(1, -1, 1), settings, advance=advanced.append
    )
    assert sum(advanced) == 3
    side, move = patch or size // 8, stride or size // 16
    begins = list(range(0, size - side + 1, move))
    if begins[-1] != size - side:
        begins.append(size - side)
    for image, sign, found in zip(images, (1, -1, 1), maps.values, strict=True):
        whole = log_odds(network, preprocessed(network, image[None]))[0]
        fall, times = np.zeros((size, size)), np.zeros((size, size))
        for row, column in itertools.product(begins, begins):
            hidden = image.copy()
            hidden[row : row + side, column : column + side] = 0
            now = log_odds(network, preprocessed(network, hidden[None]))[0]
            fall[row : row + side, column : column + side] += sign * (whole - now)
            times[row : row + side, column : column + side] += 1
        expected = fall / times
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def _shallow() -> tuple[vgg.Layer, ...]:
    return (
        vgg.Conv("block1_conv1", 4),
        vgg.MaxPool("block1_pool"),
        vgg.Flatten("flatten"),
        vgg.Dense("dense_3", 2, relu=False),
    )


def test_where_only_one_region_matters_only_it_is_marked():
    """Weights are 0 but for the rows and columns 8 to 11."""
    network = classifier(*LINEAR)
    weights = np.zeros((SIZE, SIZE, 3, 2), np.float32)
    weights[8:12, 8:12, :, 1] = 0.01
    network.params["dense_3"]["kernel"] = jnp.asarray(weights.reshape(-1, 2))
    images = np.full((1, SIZE, SIZE, 3), 200, np.uint8)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[8:12, 8:12] = True
    gradients = Settings(method=Method.INTEGRATED_GRADIENTS, steps=2)
    maps = attribute(network, images, signs(1), gradients).values[0]
    assert maps[inside].min() > 0
    assert not maps[~inside].any()
    occlusion = Settings(method=Method.OCCLUSION, patch=4, stride=4)
    maps = attribute(network, images, signs(1), occlusion).values[0]
    assert maps[inside].min() > 0
    np.testing.assert_allclose(maps[~inside], 0, atol=1e-6)


def test_where_only_one_channel_matters_its_activation_is_the_map():
    network = classifier(
        vgg.Conv("block5_conv1", 3),
        vgg.MaxPool("block5_pool"),
        vgg.GlobalAveragePool("pooling"),
        vgg.Dense("dense_3", 2, relu=False),
        preprocessing=Preprocessing("rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    )
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[1, 1] = np.eye(3)  # the convolution leaves the picture as it is
    network.params["block5_conv1"] = {
        "kernel": jnp.asarray(kernel),
        "bias": jnp.zeros(3),
    }
    network.params["dense_3"]["kernel"] = jnp.asarray([[0, 0], [0, 1.0], [0, 0]])
    images = cells(1)
    for method in (Method.GRADCAM, Method.GRADCAM_PLUS):
        settings = Settings(method=method)
        found = attribute(network, images, signs(1), settings).values[0]
        green = images[0, ..., 1]
        np.testing.assert_allclose(found / found.max(), green / green.max(), atol=1e-5)
        # Nothing speaks for HEM.
        none = attribute(network, images, signs(-1), settings).values
        assert not none.any()


@pytest.mark.parametrize("method", list(Method))
def test_a_map_depends_on_its_own_image_alone(method):
    network, images = classifier(), cells(3)
    settings = Settings(method=method, steps=4, patch=16, stride=16)
    sign = signs(1, -1, 1)
    together = attribute(network, images, sign, settings, batch_size=4)
    for i in range(3):
        alone = attribute(
            network, images[i : i + 1], sign[i : i + 1], settings, batch_size=4
        )
        scale = np.abs(together.values[i]).max()
        np.testing.assert_allclose(
            alone.values[0], together.values[i], atol=1e-5 * scale
        )
        np.testing.assert_allclose(
            alone.log_odds[0], together.log_odds[i], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("method", [Method.INTEGRATED_GRADIENTS, Method.OCCLUSION])
def test_what_speaks_for_one_class_speaks_against_the_other(method):
    network, images = classifier(), cells(2)
    settings = Settings(method=method, steps=4, patch=16, stride=16)
    of_all, of_hem = (
        attribute(network, images, sign, settings, batch_size=4).values
        for sign in (signs(1, 1), signs(-1, -1))
    )
    np.testing.assert_allclose(of_all, -of_hem, atol=1e-6)
    assert of_all.any()


def test_other_weights_and_more_images_compile_nothing_anew():
    settings = Settings(block=1)
    first, second = (classifier(*_shallow(), seed=seed) for seed in (11, 12))
    attribute(first, cells(2), signs(1, 1), settings, batch_size=2)
    compiled: Any = attribution.class_activation
    before = compiled._cache_size()
    attribute(first, cells(5), signs(1, 1, 1, 1, 1), settings, batch_size=2)
    attribute(second, cells(1), signs(1), settings, batch_size=2)
    assert compiled._cache_size() == before


def test_a_network_of_bfloat16_is_explained_in_float32():
    images = cells(2)
    exact, coarse = (
        attribute(classifier(dtype=dtype), images, signs(1, 1), Settings(block=4))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    np.testing.assert_array_equal(coarse.values, exact.values)


def test_gradients_do_not_go_through_the_fast_blocks(monkeypatch):
    """Winograd's products round otherwise, and gradients feel it."""

    def refuse(*_: object, at_once: bool) -> None:
        raise AssertionError("the fast way was taken")

    monkeypatch.setattr(blocks, "winograd", refuse)
    network, images = classifier(*_shallow()), cells(1)
    size = 3  # of a batch, that no other test compiles
    gradients = Settings(method=Method.INTEGRATED_GRADIENTS, steps=2)
    attribute(network, images, signs(1), gradients, batch_size=size)
    attribute(network, images, signs(1), Settings(block=1), batch_size=size)
    hiding = Settings(method=Method.OCCLUSION)  # has no gradients
    with pytest.raises(AssertionError, match="the fast way was taken"):
        attribute(network, images, signs(1), hiding, batch_size=size)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"block": 0}, "--block=0: must be from 1 to 5"),
        ({"block": 6}, "--block=6"),
        ({"steps": 0}, "--steps=0"),
        ({"patch": 0}, "--patch=0"),
        ({"patch": 33}, "--patch=33: must be from 1 to 32"),
        ({"stride": 0}, "--stride=0"),
        ({"patch": 4, "stride": 5}, "--stride=5: must be from 1 to 4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        attribute(classifier(), cells(1), signs(1), Settings(**wrong))


def test_a_block_that_a_network_lacks_is_refused():
    network = classifier(*_shallow())
    with pytest.raises(InputError, match="--block=5: the network has no such block"):
        attribute(network, cells(1), signs(1), Settings(block=5))
    known = attribute(network, cells(1), signs(1), Settings(block=1)).values
    assert known.any()
    # Where none is named, it is the last one that there is.
    last = attribute(network, cells(1), signs(1), Settings()).values
    np.testing.assert_array_equal(last, known)


def test_settings_tell_what_was_used():
    assert Settings(block=3).used(224) == {"method": "gradcam", "block": 3}
    occlusion = Settings(method=Method.OCCLUSION)
    assert occlusion.used(224) == {"method": "occlusion", "patch": 28, "stride": 14}
    gradients = dataclasses.replace(occlusion, method=Method.INTEGRATED_GRADIENTS)
    assert gradients.used(224)["steps"] == gradients.steps
