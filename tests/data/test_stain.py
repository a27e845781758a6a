"""Cells are brought to the standard cell's optical density, and nothing else is."""

import jax
import numpy as np
import pytest

from allcls_jax.data import stain


def picture(seed: int = 0, side: int = 40) -> np.ndarray:
    """Returns (1, side, side, 3) float32: a disc of bright texture on black."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    cell = rng.uniform([60, 20, 70], [190, 120, 180], (side, side, 3))
    return np.where(np.hypot(y, x)[..., None] < side / 3, cell, 0)[None].astype("f4")


def densities(image: np.ndarray) -> np.ndarray:
    """Returns (pixels, 3) float64 of the cell of one picture."""
    cell = image[image.any(-1)].astype(np.float64)
    return -np.log(np.clip(cell, 1, 255) / 255)


def test_optical_density_and_back():
    grey = np.array([0, 1, 51, 255], np.uint8)
    density = np.asarray(stain.optical_density(grey))
    expected = [np.log(255), np.log(255), np.log(5), 0]
    np.testing.assert_allclose(density, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stain.grey_levels(density), [1, 1, 51, 255], rtol=1e-5)
    outside = np.array([-1.0, 1000.0], np.float32)
    assert np.asarray(stain.grey_levels(outside)).tolist() == [255, 0]


def test_a_cell_is_where_any_channel_is_above_0():
    images = np.zeros((1, 1, 3, 3), np.uint8)
    images[0, 0, 1, 2] = 1
    images[0, 0, 2] = 9
    assert np.asarray(stain.is_cell(images))[0, 0, :, 0].tolist() == [
        False,
        True,
        True,
    ]


def test_two_pixels_by_hand():
    # Densities log 5 ± log 1.5 in each channel: mean log 5, deviation log 1.5.
    images = np.zeros((1, 2, 2, 3), np.float32)
    images[0, 0, 0], images[0, 1, 1] = 51 * 1.5, 51 / 1.5
    found = np.asarray(stain.normalise(images))
    mean, spread = np.array(stain.STANDARD)
    np.testing.assert_allclose(found[0, 0, 0], 255 * np.exp(spread - mean), rtol=1e-5)
    np.testing.assert_allclose(found[0, 1, 1], 255 * np.exp(-spread - mean), rtol=1e-5)
    assert not found[0, [0, 1], [1, 0]].any()


def test_a_cell_has_the_standard_cells_mean_and_deviation():
    found = densities(np.asarray(stain.normalise(picture()))[0])
    np.testing.assert_allclose(found.mean(0), stain.STANDARD[0], atol=2e-4)
    np.testing.assert_allclose(found.std(0), stain.STANDARD[1], atol=2e-4)


@pytest.mark.parametrize("factor", [0.8, 1.25])
@pytest.mark.parametrize("shift", [-0.1, 0.15])
def test_another_stain_and_another_light_make_no_difference(factor, shift):
    original = picture()
    factors = np.array([factor, 1.0, 2 - factor])
    shifts = np.array([shift, -shift / 2, shift])
    density = -np.log(np.maximum(original, 1e-9) / 255) * factors + shifts
    other = np.where(original > 0, 255 * np.exp(-density), 0).astype(np.float32)
    assert other.max() < 255
    assert other[other > 0].min() > 1  # nothing is clipped
    assert np.abs(other - original).max() > 10
    # The same but for float32: a few roundings of 1.5e-5, that of 255 grey levels.
    expected = np.asarray(stain.normalise(original))
    np.testing.assert_allclose(stain.normalise(other), expected, atol=5e-4)
    # Whole levels: half a level may become more than one where a dim light is undone.
    rounded = stain.normalise(np.rint(other).astype(np.uint8))
    np.testing.assert_allclose(rounded, expected, atol=1.5)


def test_black_stays_black_and_images_do_not_touch_each_other():
    both = np.concatenate([picture(0), picture(1) * 0.5, np.zeros((1, 40, 40, 3))])
    both = both.astype(np.uint8)
    found = np.asarray(jax.jit(stain.normalise)(both))
    assert found.dtype == np.float32
    assert np.array_equal(found.any(-1), both.any(-1))
    assert np.array_equal(found, np.clip(found, 0, 255))
    for i in range(3):
        alone = np.asarray(stain.normalise(both[i : i + 1]))
        np.testing.assert_allclose(found[i : i + 1], alone, rtol=1e-5)


def test_a_flat_cell_becomes_the_mean_and_no_noise_is_blown_up():
    image = picture()
    image[image > 0] = 100
    found = np.asarray(stain.normalise(image))[image.any(-1)]
    expected = 255 * np.exp(-np.array(stain.STANDARD[0]))
    np.testing.assert_allclose(found, np.tile(expected, (len(found), 1)), rtol=1e-4)
    image[0, 20, 20] += 1
    pixel = np.asarray(stain.normalise(image))[0, 20, 20]
    limit = 0.01 / stain.LEAST_SPREAD * np.array(stain.STANDARD[1])
    assert np.all(pixel / expected < np.exp(limit * 1.01))


def test_no_density_falls_below_0():
    image = np.full((1, 10, 10, 3), 20, np.float32)
    image[0, 0, 0] = 255
    assert np.asarray(stain.normalise(image)).max() == 255
