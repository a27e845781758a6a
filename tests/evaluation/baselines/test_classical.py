"""Segmentation, texture and shape, against values worked out by hand."""

import math

import numpy as np
import pytest

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.evaluation.baselines import classical

# Colours as in the real cells.
NUCLEUS = (65, 25, 75)
CYTOPLASM = (110, 90, 120)


def disc(size: int, radius: float, x: float | None = None) -> np.ndarray:
    """A disc in the middle of a square, or about column x."""
    line = np.arange(size) - (size - 1) / 2
    across = line if x is None else np.arange(size) - x
    return np.hypot(line[:, np.newaxis], across) <= radius


def painted(*layers: tuple[np.ndarray, tuple[int, int, int]]) -> np.ndarray:
    """Colours laid over black, with a grain of one grey level."""
    image = np.zeros((*layers[0][0].shape, 3), np.uint8)
    rng = np.random.default_rng(0)
    for mask, colour in layers:
        grain = rng.integers(-1, 2, (np.count_nonzero(mask), 3))
        image[mask] = np.array(colour) + grain
    return image


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float(np.sum(one & other) / np.sum(one | other))


@pytest.fixture(scope="module")
def cells() -> list[np.ndarray]:
    """Two synthetic cells as a pack stores them."""
    config = SyntheticConfig(num_images=24)
    return [transforms.resize(synthetic.draw(config, i), 224) for i in (0, 23)]


def test_the_nucleus_is_found_within_the_cytoplasm():
    cell, nucleus = disc(120, 45), disc(120, 28, x=65)
    found = classical.segment(painted((cell, CYTOPLASM), (nucleus, NUCLEUS)))
    np.testing.assert_array_equal(found.cell, cell)
    assert overlap(found.nucleus, nucleus) > 0.97


def test_a_nucleus_is_found_that_is_larger_than_the_cytoplasm():
    cell, nucleus = disc(120, 45), disc(120, 38, x=56)
    found = classical.segment(painted((cell, CYTOPLASM), (nucleus, NUCLEUS)))
    assert overlap(found.nucleus, nucleus) > 0.97


def test_a_cell_without_cytoplasm_is_all_nucleus():
    cell = disc(120, 40)
    found = classical.segment(painted((cell, NUCLEUS)))
    assert overlap(found.nucleus, cell) > 0.99


def test_chromatin_is_not_taken_for_cytoplasm():
    cell = disc(120, 40)
    lighter = tuple(round(255 * (level / 255) ** 0.88) for level in NUCLEUS)
    left = cell & (np.arange(120) < 60)
    found = classical.segment(painted((cell, NUCLEUS), (left, lighter)))
    assert overlap(found.nucleus, cell) > 0.99


def test_a_pale_spot_within_the_nucleus_belongs_to_it():
    cell, nucleus, spot = disc(120, 50), disc(120, 40), disc(120, 6)
    image = painted((cell, CYTOPLASM), (nucleus, NUCLEUS), (spot, CYTOPLASM))
    found = classical.segment(image)
    assert found.nucleus[spot].all()
    assert overlap(found.nucleus, nucleus) > 0.95


def test_what_sticks_to_the_cell_is_no_nucleus():
    cell, shred = disc(120, 30, x=40), disc(120, 18, x=85)
    image = painted((shred, CYTOPLASM), (cell, NUCLEUS))
    found = classical.segment(image)
    np.testing.assert_array_equal(found.cell, cell | shred)
    assert overlap(found.nucleus, cell) > 0.95


def test_a_thin_bridge_of_stain_leads_to_no_second_nucleus():
    cell, other, bridge = disc(120, 30, x=40), disc(120, 14, x=95), disc(120, 50)
    bridge &= np.abs(np.arange(120)[:, np.newaxis] - 60) <= 2
    image = painted((bridge, NUCLEUS), (other, NUCLEUS), (cell, NUCLEUS))
    found = classical.segment(image)
    np.testing.assert_array_equal(found.cell, cell | other | bridge)
    assert overlap(found.nucleus, cell) > 0.95


def test_the_cell_is_the_largest_region_and_has_no_holes():
    cell, hole, crumb = disc(120, 30), disc(120, 3), disc(120, 6, x=110)
    image = painted((cell, NUCLEUS), (hole, (0, 0, 0)), (crumb, NUCLEUS))
    image[hole] = 0
    np.testing.assert_array_equal(classical.segment(image).cell, cell)


def test_a_cell_at_the_edge_of_the_picture_is_segmented_there_too():
    cell = disc(60, 25, x=5)
    found = classical.segment(painted((cell, NUCLEUS)))
    np.testing.assert_array_equal(found.cell, cell)
    assert found.nucleus[:, 0].sum() == cell[:, 0].sum()


def test_segmenting_turns_with_the_picture(cells):
    for image in cells:
        found = classical.segment(image)
        turned = classical.segment(np.ascontiguousarray(np.rot90(image)))
        np.testing.assert_array_equal(np.rot90(found.cell), turned.cell)
        assert overlap(np.rot90(found.nucleus), turned.nucleus) > 0.99


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((16, 16, 3), np.uint8),
        np.full((16, 16, 3), 90, np.uint8),
        np.pad(np.full((1, 1, 3), 90, np.uint8), ((7, 8), (7, 8), (0, 0))),
        np.pad(np.full((2, 9, 3), 90, np.uint8), ((7, 7), (3, 4), (0, 0))),
        np.pad(np.full((4, 4, 3), 90, np.uint8), ((6, 6), (6, 6), (0, 0))),
        np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8),
    ],
    ids=["black", "grey", "pixel", "line", "square", "noise"],
)
def test_every_picture_has_finite_figures(image):
    segmentation = classical.segment(image)
    assert not np.any(segmentation.nucleus & ~segmentation.cell)
    values = classical.describe(image, segmentation)
    assert values.shape == (len(classical.NAMES),)
    assert np.all(np.isfinite(values))


def test_an_empty_picture_has_figures_of_zero():
    image = np.zeros((16, 16, 3), np.uint8)
    assert not classical.describe(image, classical.segment(image)).any()


def test_a_figure_stands_under_its_name(cells):
    segmentation = classical.segment(cells[0])
    values = dict(
        zip(classical.NAMES, classical.describe(cells[0], segmentation), strict=True)
    )
    assert values["area of the cell"] == segmentation.cell.sum()
    assert values["area of the nucleus"] == segmentation.nucleus.sum()
    share = segmentation.nucleus.sum() / segmentation.cell.sum()
    assert values["nucleus share"] == pytest.approx(share)
    grey = cells[0] @ np.array([299, 587, 114]) // 1000
    found = classical.texture(grey.astype(np.uint8), segmentation.nucleus)
    assert values["energy at 2 px"] == found[0, 1]
    assert values["correlation at 4 px"] == found[3, 2]


def test_texture_of_two_pixels():
    """One pair at distance 1, counted in both orders: (0, 4) and (4, 0)."""
    grey = np.array([[3, 16]], np.uint8)  # steps 0 and 4
    found = classical.texture(grey, np.ones((1, 2), bool))
    np.testing.assert_allclose(
        found[:, 0], [math.sqrt(0.5), math.log(2), 16.0, -1.0], rtol=1e-12
    )


def test_texture_of_a_checkerboard():
    """Of steps a = 0 and b = 1, 2 x 3 pixels: aba/bab.

    At distance 1: 4 level pairs and 3 upright ones differ, 4 slanting ones are equal,
    2 of a and 2 of b; both orders make 14 unlike and 8 like entries of 22.
    """
    grey = np.array([[0, 4, 0], [4, 0, 4]], np.uint8)
    found = classical.texture(grey, np.ones((2, 3), bool))[:, 0]
    like, unlike = 4 / 22, 7 / 22
    energy = math.sqrt(2 * like**2 + 2 * unlike**2)
    entropy = -2 * (like * math.log(like) + unlike * math.log(unlike))
    # Means are 1/2 and variances 1/4: (like - unlike) / 2 over 1/4.
    correlation = (2 * like - 2 * unlike) / 4 / 0.25
    np.testing.assert_allclose(
        found, [energy, entropy, 2 * unlike, correlation], rtol=1e-12
    )


def test_texture_of_one_grey_level():
    found = classical.texture(np.full((6, 6), 99, np.uint8), np.ones((6, 6), bool))
    np.testing.assert_allclose(found[:3, 0], [1, 0, 0], atol=1e-12)


def test_texture_looks_within_the_mask_only():
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (20, 20), dtype=np.uint8)
    mask = disc(20, 7)
    other = np.where(mask, grey, rng.integers(0, 256, (20, 20))).astype(np.uint8)
    moved = np.pad(grey, ((5, 0), (0, 9)))
    expected = classical.texture(grey, mask)
    np.testing.assert_array_equal(classical.texture(other, mask), expected)
    np.testing.assert_array_equal(
        classical.texture(moved, np.pad(mask, ((5, 0), (0, 9)))), expected
    )


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_texture_is_the_same_in_every_quarter_turn_and_mirror_image(turns, mirror):
    rng = np.random.default_rng(2)
    grey, mask = rng.integers(0, 256, (24, 31), dtype=np.uint8), disc(31, 9)[3:27]
    turned = [np.rot90(a[:, ::-1] if mirror else a, turns) for a in (grey, mask)]
    np.testing.assert_array_equal(
        classical.texture(turned[0], turned[1]), classical.texture(grey, mask)
    )


def test_texture_is_the_same_in_a_picture_brighter_by_whole_steps():
    grey = np.random.default_rng(3).integers(0, 200, (24, 24), dtype=np.uint8)
    mask = disc(24, 10)
    np.testing.assert_allclose(
        classical.texture(grey + np.uint8(12), mask),
        classical.texture(grey, mask),
        rtol=1e-9,
    )


def test_coarse_texture_has_less_contrast_than_fine():
    rng = np.random.default_rng(4)
    fine = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    coarse = np.kron(fine[:8, :8], np.ones((4, 4), np.uint8))
    mask = np.ones((32, 32), bool)
    assert (
        classical.texture(coarse, mask)[2, 0]
        < 0.5 * classical.texture(fine, mask)[2, 0]
    )


def test_shape_of_a_rectangle():
    mask = np.zeros((30, 40), bool)
    mask[5:15, 8:28] = True  # 10 x 20
    area, perimeter, eccentricity, solidity, extent, roundness = classical.shape(mask)
    assert area == 200
    # Through the centres of the outermost pixels: 2 (9 + 19).
    assert perimeter == pytest.approx(56)
    # The variance along n pixels is (n² - 1) / 12.
    assert eccentricity == pytest.approx(math.sqrt(1 - 99 / 399), rel=1e-6)
    assert (solidity, extent) == (1, 1)
    assert roundness == pytest.approx(4 * math.pi * 200 / 56**2)


def test_shape_of_a_disc_and_of_a_notched_one():
    mask = disc(80, 30)
    area, perimeter, eccentricity, solidity, extent, roundness = classical.shape(mask)
    assert area == pytest.approx(math.pi * 30**2, rel=0.01)
    assert perimeter == pytest.approx(2 * math.pi * 30, rel=0.05)
    assert eccentricity == pytest.approx(0, abs=1e-6)
    assert solidity > 0.97
    assert extent == pytest.approx(math.pi / 4, rel=0.03)
    assert roundness == pytest.approx(1, rel=0.1)
    notched = mask & ~disc(80, 15, x=70)
    assert classical.shape(notched)[3] < solidity - 0.05


def test_shape_does_not_depend_on_where_a_region_lies():
    mask = disc(60, 12, x=20) | disc(60, 7, x=35)
    expected = classical.shape(mask)
    np.testing.assert_allclose(classical.shape(np.rot90(mask)), expected, rtol=1e-9)
    np.testing.assert_allclose(classical.shape(mask[10:-10]), expected, rtol=1e-9)


def test_optical_density_of_known_levels():
    density = classical.optical_density(np.array([255, 127, 0], np.uint8))
    np.testing.assert_allclose(density, [0, math.log(2), math.log(256)], rtol=1e-6)


def test_the_interior_is_two_pixels_from_the_outline():
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    expected = np.zeros((9, 9), bool)
    expected[3:6, 3:6] = True
    np.testing.assert_array_equal(classical.interior(mask), expected)
    thin = np.zeros((9, 9), bool)
    thin[4] = True
    np.testing.assert_array_equal(classical.interior(thin), thin)
