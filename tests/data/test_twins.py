import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from allcls_jax.data import transforms, twins
from allcls_jax.data.twins import Sketch, find_twins, sketch
from tests.data import pictures, planted


def looks(files: Sequence[bytes]) -> list[Sketch]:
    """As the audit looks at files."""
    found = []
    for data in files:
        image = transforms.zero_background(transforms.decode(data, name="a file"))
        look = sketch(image)
        assert look is not None
        found.append(look)
    return found


def look(image: np.ndarray) -> Sketch:
    found = sketch(image)
    assert found is not None
    return found


def disc(radius: float = 100, side: int = 450) -> np.ndarray:
    """True within a disc in the middle."""
    line = np.arange(side) - (side - 1) / 2
    return np.hypot(line, line[:, np.newaxis]) < radius


def stained(mask: np.ndarray, seed: int, contrast: float = 25) -> np.ndarray:
    """The same dark purple in every mask, with a texture of its own."""
    rng = np.random.default_rng(seed)
    spots = rng.standard_normal((60, 60)).astype(np.float32)
    wide = Image.fromarray(spots).resize(mask.shape, Image.Resampling.BICUBIC)
    grey = contrast * np.asarray(wide)[..., np.newaxis]
    image = np.array([110.0, 60.0, 130.0]) + grey
    return (np.clip(image, 30, 255) * mask[..., np.newaxis]).astype(np.uint8)


def test_planted_copies_are_found_and_no_others():
    copies = planted.copies(60)
    expected = copies.pairs()
    assert len(expected) == 60 * 15
    pairs = find_twins(looks(copies.files))
    assert max(pair.agreement for pair in pairs) <= 1
    found = {(pair.first, pair.second) for pair in pairs}
    recall = len(found & expected) / len(expected)
    precision = len(found & expected) / len(found)
    assert recall >= 0.99
    assert precision >= 0.99
    # What can be expected of drawn cells, which are all in focus.
    assert (recall, precision) == (1, 1)


@pytest.mark.parametrize("view", planted.VIEWS)
def test_the_view_that_is_told_turns_the_first_into_the_second(view: tuple[int, bool]):
    image = planted.cell(3)
    copy = planted.turn(image, view)
    (found,) = find_twins([look(image), look(copy)])
    assert (found.first, found.second) == (0, 1)
    assert found.view == view
    assert found.distance < 1e-3
    assert found.agreement == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(twins.turned(image, found.view), copy)


@pytest.mark.parametrize("view", planted.VIEWS)
def test_of_several_views_the_best_is_told(view: tuple[int, bool]):
    image = planted.cell(4)
    copy = transforms.decode(planted.jpeg(planted.turn(image, view)), name="a file")
    cells = [look(image), look(transforms.zero_background(copy))]
    # All views of so round a cell pass.
    (found,) = find_twins(cells, distance=255, agreement=1e-6)
    assert found.view == view
    assert found.agreement > 0.9


def test_a_shift_that_cuts_nothing_makes_no_difference():
    rng = np.random.default_rng(1)
    image = planted.cell(5)
    moved = [planted.shift(image, rng) for _ in range(3)]
    assert not any(np.array_equal(image, copy) for copy in moved)
    for copy in moved:
        one, other = look(image), look(copy)
        assert one.fine is not None
        assert other.fine is not None
        np.testing.assert_allclose(one.coarse, other.coarse, atol=1e-4)
        np.testing.assert_allclose(one.fine, other.fine, atol=1e-3)


@pytest.mark.parametrize("quality", [95, 90, 75])
def test_encoding_anew_moves_a_cell_by_few_grey_levels(quality: int):
    files = [
        pictures.encode(planted.cell(7), "BMP"),
        planted.jpeg(planted.cell(7), quality),
    ]
    (found,) = find_twins(looks(files))
    assert 0 < found.distance < 4
    assert 0.85 < found.agreement < 1


def test_the_distance_is_the_root_mean_square_of_the_boxes():
    mask = disc()
    image = stained(mask, 0)
    paler = np.where(mask[..., np.newaxis], image + 6, 0).astype(np.uint8)
    (found,) = find_twins([look(image), look(paler)])
    share = np.mean(mask[125:325, 125:325])  # of the box, the disc covers
    assert found.distance == pytest.approx(6 * np.sqrt(share), rel=0.01)


def test_cells_alike_in_all_but_texture_are_not_twins():
    cells = [look(stained(disc(), seed, contrast=10)) for seed in range(20)]
    distances = [
        np.sqrt(np.mean((a.coarse - b.coarse) ** 2))
        for a, b in itertools.combinations(cells, 2)
    ]
    # Coarsely they are what the first look lets pass.
    assert max(distances) < twins.DISTANCE
    assert find_twins(cells) == []
    # A threshold that lets everything pass finds them all: the texture has decided.
    assert len(find_twins(cells, agreement=1e-6)) == 190


def test_a_speck_in_the_same_place_does_not_make_twins():
    cells = []
    for seed in range(6):
        image = stained(disc(), seed, contrast=10)
        image[180:192, 210:222] = 255
        cells.append(look(image))
    everything = find_twins(cells, agreement=1e-6)
    assert len(everything) == 6 * 5 / 2
    assert max(pair.agreement for pair in everything) < 0.45


def test_cells_of_one_patient_with_one_stain_are_not_twins():
    cells = [look(planted.cell(i)) for i in range(11)]
    everything = find_twins(cells, distance=255, agreement=1e-6)
    assert len(everything) == 11 * 10 / 2
    assert max(found.agreement for found in everything) < 0.4
    assert find_twins(cells, distance=255) == []


def test_a_mask_that_differs_by_a_pixel_or_a_shred_makes_no_difference():
    image = planted.cell(11)
    ys, xs = np.nonzero(image.any(axis=-1))
    # One pixel that sticks out, and one row less.
    spur, shaved = image.copy(), image.copy()
    spur[ys.max() + 1, xs[ys.argmax()]] = image[ys.max(), xs[ys.argmax()]]
    shaved[ys.min()] = 0
    shred = image.copy()
    middle = int(np.median(ys))
    edge = int(xs[ys == middle].max())
    shred[middle - 3 : middle + 3, edge : edge + 8] = (150, 90, 160)
    for copy in (spur, shaved, shred):
        assert not np.array_equal(copy, image)
        (found,) = find_twins([look(image), look(copy)])
        assert found.distance < 10
        assert found.agreement > 0.85


def test_copies_of_another_size_are_found():
    image = Image.fromarray(planted.cell(13))
    half = np.array(image.resize((225, 225), Image.Resampling.BILINEAR))
    (found,) = find_twins([look(planted.cell(13)), look(half)])
    assert found.agreement > 0.9


def test_cells_without_texture_are_nobodys_twins():
    flat = [
        look((disc(r)[..., np.newaxis] * np.array(c)).astype(np.uint8))
        for r, c in ((80, (90, 50, 120)), (80, (90, 50, 120)), (120, (91, 51, 121)))
    ]
    assert [one.fine for one in flat] == [None, None, None]
    assert np.ptp(flat[0].coarse - flat[1].coarse) == 0
    assert find_twins(flat) == []
    # Nor do they keep others from being found.
    cell = look(planted.cell(17))
    (found,) = find_twins([flat[0], cell, flat[1], cell])
    assert (found.first, found.second) == (1, 3)


def test_noise_of_less_than_a_grey_level_is_no_texture():
    image = stained(disc(), 0, contrast=0)
    noisy = image + np.random.default_rng(0).integers(0, 2, image.shape, np.uint8)
    assert look(noisy * disc()[..., np.newaxis].astype(np.uint8)).fine is None
    assert look(stained(disc(), 0, contrast=25)).fine is not None


def test_threads_of_cells_are_too_thin_to_tell():
    mask = np.zeros((450, 450), bool)
    mask[220:230, 20:430] = True
    assert look(stained(mask, 0)).fine is None


@pytest.mark.parametrize(
    "shape", [(1, 1, 3), (1, 40, 3), (40, 1, 3), (2, 2, 3), (5, 7, 3), (3000, 40, 3)]
)
def test_pictures_of_any_shape_have_a_sketch(shape: tuple[int, ...]):
    assert sketch(np.zeros(shape, np.uint8)) is None
    one = look(np.full(shape, 200, np.uint8))
    np.testing.assert_allclose(one.coarse, 200, rtol=1e-6)
    noisy = look(pictures.random_pixels(shape=shape) // 2 + 100)
    assert noisy.coarse.shape == (32, 32, 3)
    assert len(find_twins([one, noisy, noisy])) <= 1


def test_no_cell_and_one_cell_have_no_twins():
    assert find_twins([]) == []
    assert find_twins([look(planted.cell(0))]) == []


def test_pictures_that_are_all_alike_are_chained_and_not_all_paired(
    monkeypatch: pytest.MonkeyPatch,
):
    rng = np.random.default_rng(0)
    image = stained(disc(), 0)
    cells = []
    for _ in range(50):
        noise = rng.integers(0, 4, image.shape, np.uint8)
        cells.append(look(np.where(image > 0, image + noise, 0).astype(np.uint8)))
    assert len(find_twins(cells)) == 50 * 49 / 2
    monkeypatch.setattr(twins, "_NEAREST", 8)
    found = find_twins(cells)
    assert 49 <= len(found) <= 8 * 50
    monkeypatch.setattr(twins, "_NEAREST", 100)
    monkeypatch.setattr(twins, "_MOST", 8)
    assert len(find_twins(cells)) <= 8 * len(twins.VIEWS) * 50
    compared = twins._alike(np.stack([cell.coarse for cell in cells]), 10)(0)
    assert np.bincount(compared.first).max() <= 8 * len(twins.VIEWS)
    joined = {0}
    for _ in cells:
        for pair in found:
            if joined & {pair.first, pair.second}:
                joined |= {pair.first, pair.second}
    assert joined == set(range(50))


def test_order_and_portions_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    copies = planted.copies(6)
    cells = looks(copies.files)
    found = find_twins(cells)
    key = [(pair.first, pair.second) for pair in found]
    assert key == sorted(copies.pairs())
    order = np.random.default_rng(0).permutation(len(cells))
    again = find_twins([cells[i] for i in order])
    as_before = {tuple(sorted((order[t.first], order[t.second]))) for t in again}
    assert as_before == set(key)
    monkeypatch.setattr(twins, "_QUERIES", 7)
    monkeypatch.setattr(twins, "_PAIRS", 5)
    assert [(pair.first, pair.second) for pair in find_twins(cells)] == key


def test_of_huge_pictures_every_other_pixel_will_do():
    image = pictures.random_pixels(shape=(2200, 300, 3)) // 2 + 100
    one, other = look(image), look(image[::2, ::2])
    np.testing.assert_array_equal(one.coarse, other.coarse)
    assert one.fine is not None
    np.testing.assert_array_equal(one.fine, other.fine)


def test_thresholds_bound_what_is_found():
    files = [
        pictures.encode(planted.cell(19), "BMP"),
        planted.jpeg(planted.cell(19), 80),
    ]
    cells = looks(files)
    (found,) = find_twins(cells)
    assert find_twins(cells, distance=found.distance * 1.01)
    assert not find_twins(cells, distance=found.distance * 0.99)
    assert find_twins(cells, agreement=found.agreement * 0.999)
    assert not find_twins(cells, agreement=min(1, found.agreement * 1.001))


def test_means_are_those_of_whole_and_broken_pixels():
    rng = np.random.default_rng(0)
    image = rng.random((7, 5, 3))
    means = twins._means(image, np.linspace(0, 7, 8), np.linspace(0, 5, 6))
    np.testing.assert_allclose(means, image, atol=1e-12)
    # Every pixel as 12 x 12 equal ones: cells of the grid are then whole.
    fine = image.repeat(12, axis=0).repeat(12, axis=1)
    rows, columns = np.linspace(-3.5, 10.5, 5), np.linspace(-1, 6.5, 4)
    means = twins._means(image, rows, columns)
    framed = np.pad(fine, ((42, 42), (12, 18), (0, 0)))
    expected = framed.reshape(4, 42, 3, 30, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(means, expected, atol=1e-12)


def test_the_search_in_few_directions_loses_no_pair():
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 60, (40, 32, 32, 3)).astype(np.float32)
    flat = coarse.reshape(40, -1)
    project = twins._projection(coarse)
    views = np.rot90(coarse, axes=(1, 2)).reshape(40, -1)
    for one, other in itertools.product(range(40), repeat=2):
        exact = np.linalg.norm(flat[one] - views[other])
        mapped = np.linalg.norm(project(flat[[one]]) - project(views[[other]]))
        assert mapped <= exact * (1 + 1e-5)
