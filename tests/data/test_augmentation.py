"""Augmentation against NumPy, SciPy and Pillow, and what it promises."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from allcls_jax.config import AugmentConfig
from allcls_jax.data.augmentation import augment, rotate_and_zoom, turn
from allcls_jax.data.pipeline import NUM_VIEWS

STRONG = AugmentConfig(rotation=180.0, scale=0.2, colour=0.3)


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def varied(images: np.ndarray, seed: int, config: AugmentConfig) -> np.ndarray:
    """Augmented as in a training step, by the key of a seed."""
    compiled = jax.jit(partial(augment, config=config))
    return np.asarray(compiled(images, jax.random.key(seed)))


def moved(images: np.ndarray, degrees: float, zoom: float = 1.0) -> np.ndarray:
    """All turned and zoomed alike."""
    all_of = partial(np.full, len(images), dtype=np.float32)
    compiled = jax.jit(rotate_and_zoom)
    return np.asarray(compiled(images, degrees=all_of(degrees), zoom=all_of(zoom)))


def cells(n: int, size: int = 32) -> np.ndarray:
    """Noisy discs of different levels on black, none near the edge."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = (y**2 + x**2 < (size / 4) ** 2)[..., None]
    return np.where(disc, np.maximum(noise((n, size, size, 3)), 1), 0).astype(np.uint8)


def bilinear(image: np.ndarray, degrees: float, zoom: float) -> np.ndarray:
    """SciPy's, black beyond the picture."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix /= zoom
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset: Any = centre - matrix @ centre
    planes = [
        ndimage.affine_transform(
            image[..., channel].astype(np.float64),
            matrix,
            offset=offset,
            order=1,
            mode="grid-constant",
        )
        for channel in range(3)
    ]
    return np.stack(planes, axis=-1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_all_views_are_numpys(dtype: type):
    images = noise((2 * NUM_VIEWS, 7, 7, 3)).astype(dtype)
    view = np.tile(np.arange(NUM_VIEWS, dtype=np.int32), 2)[::-1]
    turned = np.asarray(jax.jit(turn)(images, view))
    assert turned.dtype == dtype
    for image, number, found in zip(images, view, turned, strict=True):
        mirrored = image[:, ::-1] if number >= 4 else image
        np.testing.assert_array_equal(found, np.rot90(mirrored, number % 4))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 33), (24, 40)])
@pytest.mark.parametrize("degrees", [0.0, 17.0, -140.0])
@pytest.mark.parametrize("zoom", [0.7, 1.0, 1.6])
def test_rotation_and_zoom_are_one_bilinear_resampling(
    height: int, width: int, degrees: float, zoom: float
):
    # A smooth picture: a place that differs by 0.001 pixel changes it little.
    image = ndimage.gaussian_filter(noise((height, width, 3)).astype(float), (2, 2, 0))
    image = image.astype(np.uint8)
    found = moved(image[None], degrees, zoom)[0]
    expected = bilinear(image, degrees, zoom)
    np.testing.assert_allclose(found, expected, atol=0.3)
    assert np.abs(found - expected).mean() < 0.02


def test_a_positive_angle_turns_as_pillow_does():
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:30, 12:25] = (200, 150, 100)
    found = moved(image[None], 30.0)[0]
    pillow = Image.fromarray(image).rotate(30, Image.Resampling.BILINEAR)
    # Pillow cuts decimals off, and interpolates with a coarser table.
    np.testing.assert_allclose(found, np.asarray(pillow, float), atol=1.5)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [6, 7])
def test_quarter_turns_move_pixels_exactly(turns: int, size: int):
    image = noise((1, size, size, 3))
    found = moved(image, 90.0 * turns)
    np.testing.assert_array_equal(found, np.rot90(image, turns, (1, 2)))


def test_compiled_and_plain_read_the_same_pixels():
    # With noise, a pixel that is read one place off would be seen.
    rng = np.random.default_rng(1)
    images, degrees = noise((8, 64, 64, 3)), rng.uniform(-180, 180, 8)
    arguments = {
        "degrees": jnp.asarray(degrees, jnp.float32),
        "zoom": jnp.asarray(rng.uniform(0.8, 1.2, 8), jnp.float32),
    }
    plain = rotate_and_zoom(jnp.asarray(images), **arguments)
    compiled = jax.jit(rotate_and_zoom)(images, **arguments)
    np.testing.assert_allclose(np.asarray(compiled), np.asarray(plain), atol=1e-3)


def test_without_strength_nothing_is_drawn_or_computed():
    images = jnp.asarray(noise((3, 8, 8, 3)))
    key = jax.random.key(0)
    none = partial(augment, config=AugmentConfig(dihedral=True))
    found = none(images, key)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(found), np.asarray(images))
    code = jax.jit(none).lower(images, key).compile().as_text()
    assert code is not None
    operations = ("multiply(", "gather(", "rng", "xor(", "cosine(")
    assert [name for name in operations if name in code] == []
    strong = jax.jit(partial(augment, config=STRONG)).lower(images, key).as_text()
    assert "gather" in strong, "the words looked for do occur"


def test_angles_are_uniform_in_their_range():
    # The angle is told from where a bright spot went.
    n, size, radius = 2000, 31, 11
    image = np.zeros((size, size, 3), np.uint8)
    centre = size // 2
    image[centre - 1 : centre + 2, centre + radius - 1 : centre + radius + 2] = 255
    images = np.broadcast_to(image, (n, *image.shape))
    found = varied(images, 0, AugmentConfig(rotation=40.0))[..., 0]
    weight = found / found.sum((1, 2), keepdims=True)
    y = ((np.arange(size) - centre)[:, None] * weight).sum((1, 2))
    x = ((np.arange(size) - centre) * weight).sum((1, 2))
    degrees = np.rad2deg(np.arctan2(-y, x))
    assert np.abs(degrees).max() < 40.5
    counts, _ = np.histogram(degrees, np.linspace(-40, 40, 9))
    # Of 250 expected in each, five standard deviations.
    assert np.abs(counts - n / 8).max() < 5 * np.sqrt(n / 8)


def test_zooms_stay_in_their_range_and_fill_it():
    images = np.zeros((400, 41, 41, 3), np.uint8)
    images[:, 10:31, 10:31] = 200
    found = varied(images, 3, AugmentConfig(scale=0.25))
    zoom = np.sqrt(found[..., 0].sum((1, 2)) / (200 * 21**2))
    assert zoom.min() == pytest.approx(0.75, abs=0.02)
    assert zoom.max() == pytest.approx(1.25, abs=0.02)
    assert zoom.mean() == pytest.approx(1, abs=0.03)


def test_colour_multiplies_each_image_and_channel_by_one_factor():
    images = np.maximum(noise((500, 4, 4, 3)) // 2, 1)
    factors = varied(images, 0, AugmentConfig(colour=0.2)) / images
    of_each = factors[:, 0, 0]
    np.testing.assert_allclose(
        factors, np.broadcast_to(of_each[:, None, None], factors.shape), rtol=1e-6
    )
    assert 0.8 * 0.9 <= of_each.min() < 0.78
    assert 1.22 < of_each.max() <= 1.2 * 1.1
    # Channels of one image share its brightness, and differ by their gains.
    red, green = of_each[:, 0], of_each[:, 1]
    assert 0.7 < np.corrcoef(red, green)[0][1] < 0.9
    assert len(np.unique(of_each)) == of_each.size


def test_bright_pixels_stop_at_white():
    images = np.full((50, 4, 4, 3), 250, np.uint8)
    found = varied(images, 0, AugmentConfig(colour=0.5))
    assert found.max() == 255
    assert found.min() < 200


def test_the_background_stays_black():
    config = AugmentConfig(rotation=180.0, scale=0.1, colour=0.5)
    found = varied(cells(16), 1, config)
    y, x = np.mgrid[:32, :32] - 15.5
    # The discs reach 8 pixels, 8.8 when zoomed, and one more when interpolated.
    outside = y**2 + x**2 > 10.5**2
    assert (found[:, outside] == 0).all()
    assert (found.max((1, 2, 3)) > 100).all()


def test_each_image_draws_its_own_numbers():
    found = varied(cells(1).repeat(6, 0), 0, STRONG)
    assert len(np.unique(found.reshape(6, -1), axis=0)) == 6


def test_the_key_decides():
    images = cells(4)
    first = varied(images, 0, STRONG)
    np.testing.assert_array_equal(first, varied(images, 0, STRONG))
    assert np.abs(first - varied(images, 1, STRONG)).max() > 10


def test_new_keys_and_views_compile_nothing():
    traces = 0

    @jax.jit
    def step(images: jax.Array, view: jax.Array, key: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return augment(turn(images, view), key, STRONG)

    images = cells(8)
    for seed in range(4):
        view = np.random.default_rng(seed).integers(0, 8, 8).astype(np.int32)
        key = jax.random.fold_in(jax.random.key(0), seed)
        values = step(images, view, key)
        assert values.shape == images.shape
        assert bool(((values >= 0) & (values <= 255)).all())
    assert traces == 1
