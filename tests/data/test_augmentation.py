"""Augmentation against NumPy, SciPy and Pillow, and what it promises."""

import io
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from allcls_jax.config import AugmentConfig
from allcls_jax.data import jpeg_noise
from allcls_jax.data.augmentation import (
    augment,
    blur,
    cover,
    rotate_and_zoom,
    scale_stains,
    turn,
)
from allcls_jax.data.pipeline import NUM_VIEWS

# Each strong enough to be seen in every image.
EACH: dict[str, Any] = {
    "rotation": 180.0,
    "scale": 0.2,
    "shift": 0.1,
    "blur": 2.0,
    "stain": 0.3,
    "brightness": 0.3,
    "jpeg": 2.0,
    "mask": 0.5,
}
GEOMETRY = ("rotation", "scale", "shift")
STRONG = AugmentConfig(**EACH)


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def varied(images: np.ndarray, seed: int, config: AugmentConfig) -> np.ndarray:
    """Augmented as in a training step, by the key of a seed."""
    return np.asarray(compiled(**vars(config))(images, jax.random.key(seed)))


@cache
def compiled(**strengths: Any) -> Any:
    """Compiled once for each configuration: most of what a test takes."""
    return jax.jit(partial(augment, config=AugmentConfig(**strengths)))


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
        "shift": jnp.asarray(rng.uniform(-0.2, 0.2, (8, 2)), jnp.float32),
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


@pytest.mark.parametrize(("down", "right"), [(3, 0), (0, -5), (-4, 2), (8, 8)])
@pytest.mark.parametrize("size", [16, 17])
def test_a_shift_moves_pixels_and_lets_black_in(down: int, right: int, size: int):
    images = noise((2, size, size, 3))
    # Black enough that nothing comes round.
    wide = np.pad(images, ((0, 0), (16, 16), (16, 16), (0, 0)))
    expected = np.roll(wide, (down, right), (1, 2))[:, 16:-16, 16:-16]
    shift = jnp.tile(jnp.array([down, right]) / size, (2, 1))
    zeros, ones = jnp.zeros(2), jnp.ones(2)
    found = jax.jit(rotate_and_zoom)(images, degrees=zeros, zoom=ones, shift=shift)
    # A share of the side is no whole number of pixels in float32: by 1e-6 of one.
    np.testing.assert_allclose(np.asarray(found), expected, atol=0.02)


def test_images_are_turned_and_zoomed_first_and_moved_afterwards():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, 10:14, 20:26] = 200
    arguments = {"degrees": jnp.full(1, 90.0), "zoom": jnp.full(1, 1.0)}
    turned = np.asarray(rotate_and_zoom(jnp.asarray(image), **arguments))
    shift = jnp.array([[0.25, 0.125]])
    moved = rotate_and_zoom(jnp.asarray(image), **arguments, shift=shift)
    assert turned.sum() == image.sum()
    np.testing.assert_array_equal(np.asarray(moved), np.roll(turned, (8, 4), (1, 2)))


def test_shifts_fill_their_range_in_both_directions():
    images = np.zeros((400, 40, 40, 3), np.uint8)
    images[:, 18:22, 18:22] = 200
    found = varied(images, 5, AugmentConfig(shift=0.25))[..., 0]
    weight = found / found.sum((1, 2), keepdims=True)
    places = np.arange(40) - 19.5
    moved = np.stack([(weight.sum(2) * places).sum(1), (weight.sum(1) * places).sum(1)])
    assert np.abs(moved).max() < 10.01
    assert (np.abs(moved).max(1) > 9.8).all()
    assert np.abs(moved.mean(1)).max() < 5 * 10 / np.sqrt(3 * 400)
    assert abs(np.corrcoef(moved)[0][1]) < 0.25


def test_stains_of_a_pixel_are_scaled_as_by_hand():
    # Densities of red, green and blue: 2 of haematoxylin and 0.5 of eosin.
    haematoxylin = np.array([0.650, 0.704, 0.286])
    eosin = np.array([0.072, 0.990, 0.105])
    haematoxylin, eosin = (v / np.linalg.norm(v) for v in (haematoxylin, eosin))
    residual = np.cross(haematoxylin, eosin)
    residual *= 0.1 / np.linalg.norm(residual)
    grey = 255 * np.exp(-(2 * haematoxylin + 0.5 * eosin + residual))
    found = scale_stains(
        jnp.asarray(grey, jnp.float32).reshape(1, 1, 1, 3), jnp.array([[0.8, 1.3]])
    )
    expected = 255 * np.exp(-(1.6 * haematoxylin + 0.65 * eosin + residual))
    np.testing.assert_allclose(np.asarray(found).ravel(), expected, rtol=1e-5)


def test_factors_of_stains_stay_in_their_range_and_fill_it():
    # One image all alike tells both of its factors.
    images = np.full((400, 2, 2, 3), (120, 60, 140), np.uint8)
    found = varied(images, 0, AugmentConfig(stain=0.2))[:, 0, 0]
    unmixing = np.linalg.inv([[0.6503, 0.7044, 0.2861], [0.0721, 0.9918, 0.1052],
                              [-0.3094, -0.0714, 0.8848]])  # fmt: skip
    density = [-np.log(grey / 255) @ unmixing for grey in (images[:, 0, 0], found)]
    factors = (density[1] / density[0])[:, :2]
    assert factors.min() == pytest.approx(0.8, abs=0.02)
    assert factors.max() == pytest.approx(1.2, abs=0.02)
    assert abs(float(np.corrcoef(*factors.T)[0][1])) < 0.25


def test_brightness_multiplies_each_image_by_one_factor():
    images = np.maximum(noise((500, 4, 4, 3)) // 2, 1)
    factors = varied(images, 0, AugmentConfig(brightness=0.2)) / images
    of_each = factors[:, :1, :1, :1]
    np.testing.assert_allclose(factors, np.broadcast_to(of_each, factors.shape), 1e-6)
    assert 0.8 <= of_each.min() < 0.81
    assert 1.19 < of_each.max() <= 1.2
    assert of_each.mean() == pytest.approx(1, abs=0.03)


def test_bright_pixels_stop_at_white():
    images = np.full((50, 4, 4, 3), 250, np.uint8)
    found = varied(images, 0, AugmentConfig(brightness=0.5))
    assert found.max() == 255
    assert found.min() < 200


def blurred(images: np.ndarray, sigma: float, most: float = 2.0) -> np.ndarray:
    compute = jax.jit(partial(blur, most=most))
    sigmas = jnp.full(len(images), sigma)
    return np.asarray(compute(jnp.asarray(images, jnp.float32), sigmas))


def test_blur_is_scipys_gaussian():
    image = np.maximum(noise((1, 40, 40, 3)), 1).astype(np.float32)
    found = blurred(image, 1.5)
    expected = ndimage.gaussian_filter(image[0], (1.5, 1.5, 0), truncate=4)
    # Near the edge SciPy mirrors the picture.
    inner = slice(6, -6)
    np.testing.assert_allclose(found[0, inner, inner], expected[inner, inner], atol=0.2)
    np.testing.assert_array_equal(blurred(image, 0.0), image)


def test_blur_keeps_the_light_and_darkens_no_rim():
    y, x = np.mgrid[:64, :64] - 31.5
    disc = (y**2 + x**2 < 24**2)[None, ..., None]
    flat = np.where(disc, [90.0, 40.0, 110.0], 0)
    # A cell of one grey level is not changed, its outermost pixels included.
    np.testing.assert_allclose(blurred(flat, 2.0), flat, rtol=1e-5)
    spot = np.where(disc, 10.0, 0).repeat(3, -1)
    spot[:, 30:33, 30:33] = 250
    found = blurred(spot, 2.0)
    assert found.sum() == pytest.approx(spot.sum(), rel=1e-5)
    assert 10 < found[0, 31, 36, 0] < found[0, 31, 31, 0] < 100
    assert (found[~np.broadcast_to(disc, found.shape)] == 0).all()


def test_steps_of_jpeg_are_pillows_of_quality_50():
    file = io.BytesIO()
    Image.fromarray(noise((8, 8, 3))).save(file, "JPEG", quality=50, subsampling=0)
    with Image.open(file) as picture:
        tables: Any = getattr(picture, "quantization")  # noqa: B009 (of JPEG alone)
    assert jpeg_noise.LUMINANCE.ravel().tolist() == list(tables[0])
    assert jpeg_noise.CHROMINANCE.ravel().tolist() == list(tables[1])


@pytest.mark.parametrize(("quality", "coarseness"), [(50, 1.0), (25, 2.0)])
@pytest.mark.parametrize("size", [64, 45])
def test_jpeg_noise_is_that_of_pillows_jpeg(quality: int, coarseness: float, size: int):
    # Whole luminances and chrominances, so that Pillow rounds none before it quantises.
    smooth = ndimage.gaussian_filter(noise((size, size, 3)).astype(float), (2, 2, 0))
    given = np.rint((smooth - 127) * (1.5, 0.8, 0.8) + 128).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(given, "YCbCr").save(file, "JPEG", quality=quality, subsampling=0)
    with Image.open(file) as picture:
        picture.draft("YCbCr", (size, size))
        pillow = np.asarray(picture, float)
    to_rgb = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
    rgb = (given - (0, 128, 128)) @ to_rgb.T
    assert rgb.min() >= 0
    assert rgb.max() <= 255
    quantise = jax.jit(jpeg_noise.quantise)
    found = quantise(jnp.asarray(rgb[None], jnp.float32), jnp.full(1, coarseness))
    back = np.asarray(found, float)[0] @ np.linalg.inv(to_rgb).T + (0, 128, 128)
    assert np.sqrt(((pillow - given) ** 2).mean()) > 1.5, "JPEG does change the picture"
    # Pillow rounds what it decodes, in whole numbers with an error of a few hundredths;
    # a coefficient midway between two steps may go either way.
    apart = np.abs(back - pillow)
    assert np.quantile(apart, 0.95) < 0.6
    assert np.sqrt((apart**2).mean()) < 0.7


def test_jpeg_without_coarseness_changes_nothing():
    image = noise((2, 20, 24, 3)).astype(np.float32)
    found = jpeg_noise.quantise(jnp.asarray(image), jnp.zeros(2))
    np.testing.assert_allclose(np.asarray(found), image, atol=0.1)


def test_a_square_is_black_and_lies_within_the_image():
    images = np.full((300, 20, 20, 3), 9, np.uint8)
    found = varied(images, 0, AugmentConfig(mask=0.5))[..., 0]
    rows, columns = (found == 0).any(2).sum(1), (found == 0).any(1).sum(1)
    np.testing.assert_array_equal(rows, columns)
    np.testing.assert_array_equal((found == 0).sum((1, 2)), rows**2)
    assert set(rows.tolist()) == set(range(11))
    covered = (found == 0).mean(0)
    sides = covered[0], covered[-1], covered[:, 0], covered[:, -1]
    assert min(side.max() for side in sides) > 0
    whole = cover(jnp.asarray(images[:1]), side=jnp.ones(1), place=jnp.zeros((1, 2)))
    assert not np.asarray(whole).any()


@pytest.mark.parametrize("names", [*((name,) for name in EACH), tuple(EACH)])
def test_the_background_stays_black(names: tuple[str, ...]):
    images = cells(16, 48)
    found = varied(images, 1, AugmentConfig(**{name: EACH[name] for name in names}))
    y, x = np.mgrid[:48, :48] - 23.5
    # The discs reach 12 pixels. With their geometry varied: 14.4 when zoomed, one more
    # when interpolated, and 4.8 further in either direction.
    outside = y**2 + x**2 > (22.3 if set(names) & set(GEOMETRY) else 12) ** 2
    assert outside.sum() > 50
    assert (found[:, outside] == 0).all()
    assert (found.max((1, 2, 3)) > 50).all()
    assert np.abs(found - images).max((1, 2, 3)).min() > 0 or names == ("mask",)


def test_switching_others_on_changes_no_draws(monkeypatch: pytest.MonkeyPatch):
    images, key = jnp.asarray(cells(2, 16)), jax.random.key(7)
    real = jax.random.uniform

    def draws(**strengths: Any) -> set[bytes]:
        def drawn() -> list[jax.Array]:
            numbers: list[jax.Array] = []

            def uniform(*arguments: Any, **named: Any) -> jax.Array:
                numbers.append(real(*arguments, **named))
                return numbers[-1]

            monkeypatch.setattr(jax.random, "uniform", uniform)
            augment(images, key, AugmentConfig(**strengths))
            return numbers

        return {np.asarray(array).tobytes() for array in jax.jit(drawn)()}

    each = {name: draws(**{name: strength}) for name, strength in EACH.items()}
    assert {name: len(found) for name, found in each.items()} == {
        **dict.fromkeys(EACH, 1),
        "mask": 2,
    }
    together = draws(**EACH)
    assert together == set().union(*each.values())
    assert len(together) == len(EACH) + 1, "no two draw the same"
    assert draws(rotation=9.0, jpeg=1.0) == each["rotation"] | each["jpeg"]


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
