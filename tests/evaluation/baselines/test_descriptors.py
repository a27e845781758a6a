"""What is told of one image, and how it is kept."""

import dataclasses
import math

import numpy as np
import pytest

from allcls_jax.config import DataConfig, SyntheticConfig
from allcls_jax.data import prepare
from allcls_jax.data.cells import table_from_rows
from allcls_jax.data.packing import PackedCells
from allcls_jax.errors import InputError
from allcls_jax.evaluation.baselines import classical, descriptors

BLACK = np.zeros((96, 96, 3), np.uint8)


@dataclasses.dataclass
class Shown:
    """Cells from an array; counts how often each is read."""

    images: np.ndarray
    size: int = 96
    crop: int | None = None

    def __post_init__(self):
        self.reads = np.zeros(len(self.images), int)
        self.table = table_from_rows(
            (f"image {i}", "1", 1, "train", 0, f"{i:064x}", 99)
            for i in range(len(self.images))
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> np.ndarray:
        self.reads[row] += 1
        return self.images[row]


def cell(radius: float = 20, level: int = 90) -> np.ndarray:
    """A disc of one colour on black."""
    line = np.arange(96) - 47.5
    image = BLACK.copy()
    image[np.hypot(line[:, np.newaxis], line) <= radius] = level
    return image


def background(image: np.ndarray) -> dict[str, float]:
    values = descriptors.background(image).tolist()
    return dict(zip(descriptors.NAMES["background"], values, strict=True))


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> PackedCells:
    """A few synthetic cells."""
    config = DataConfig(synthetic=SyntheticConfig(num_images=24))
    return prepare.open_cells(
        config, pack_size=64, cache_dir=tmp_path_factory.mktemp("cache")
    )


def test_stain_is_the_mean_density_of_the_inner_pixels():
    image = cell()
    mask = image[..., 0] > 0
    image[mask] = (255, 127, 63)
    image[..., 1][mask & ~classical.interior(mask)] = 1  # blended with the black
    np.testing.assert_allclose(
        descriptors.stain(image, mask), [0, math.log(2), math.log(4)], rtol=1e-6
    )


def test_stain_averages_densities_not_levels():
    image = np.full((9, 10, 3), 127, np.uint8)
    image[:, 5:] = 31
    mask = np.ones((9, 10), bool)
    np.testing.assert_allclose(
        descriptors.stain(image, mask), [2 * math.log(2)] * 3, rtol=1e-6
    )


def test_stain_of_nothing_is_zero():
    assert not descriptors.stain(BLACK, BLACK[..., 0] > 0).any()


@pytest.mark.parametrize("radius", [0, 3, 20, 40, 70])
def test_a_black_background_tells_nothing_of_the_cell(radius):
    assert list(background(cell(radius)).values())[:7] == [0] * 7
    assert not any(v for n, v in background(cell(radius)).items() if "tile" in n)


def test_the_soft_edge_of_a_cell_is_not_background():
    image = cell()
    faint = (cell(23)[..., 0] > 0) & (image[..., 0] == 0)
    image[faint] = 10
    assert not any(background(image).values())


def test_pieces_that_hang_together_by_faint_pixels_are_one_cell():
    image = BLACK.copy()
    image[30:60, 20:50] = 90
    image[30:60, 50:52] = 12
    image[30:60, 52:70] = 90
    assert not any(background(image).values())


def test_synthetic_cells_have_an_empty_background(packed):
    for row in range(len(packed)):
        assert not any(background(packed[row]).values())


def test_what_is_left_in_the_background_is_averaged():
    """A tag of 4 x 4 pixels in the upper left tile."""
    image = cell(15)
    image[2:6, 2:6] = (40, 0, 20)
    found = background(image)
    outside = 96 * 96 - int(np.sum(cell(18.3)[..., 0] > 0))
    assert found["share that is not black"] == pytest.approx(16 / outside, rel=0.02)
    assert found["mean, red"] == pytest.approx(16 * 40 / outside, rel=0.02)
    assert (found["mean, green"], found["deviation, green"]) == (0, 0)
    share = 16 / outside
    spread = 20 * math.sqrt(share * (1 - share))
    assert found["deviation, blue"] == pytest.approx(spread, rel=0.02)
    assert found["mean, tile 1"] == pytest.approx(16 * 20 / 32**2)
    assert found["mean, tile 2"] == found["mean, tile 9"] == 0
    assert found["frame is not black"] == 0


def test_noise_all_over_the_background_is_seen_for_cells_of_any_size():
    values = [background(np.maximum(cell(r), 2)) for r in (10, 30)]
    assert values[0] == values[1]
    assert values[0]["share that is not black"] == 1
    assert values[0]["mean, red"] == values[0]["mean, tile 5"] == 2


def test_a_picture_without_black_frame_is_told():
    assert background(np.full_like(BLACK, 200))["frame is not black"] == 1
    half = BLACK.copy()
    half[:40] = 200
    assert background(half)["frame is not black"] == 0


def test_figures_are_told_apart_by_kind(packed):
    image = packed[0]
    values = descriptors.describe(image)[np.newaxis]
    assert values.shape == (1, descriptors.WIDTH)
    segmentation = classical.segment(image)
    for kind, expected in (
        ("stain", descriptors.stain(image, segmentation.cell)),
        ("background", descriptors.background(image)),
        ("classical", classical.describe(image, segmentation)),
    ):
        np.testing.assert_array_equal(
            descriptors.of_kind(values, kind), expected[np.newaxis]
        )


def test_figures_are_computed_once_and_by_row(packed, tmp_path):
    shown = Shown(np.stack([cell(radius) for radius in range(10, 30)]))
    rows = np.array([3, 17, 4])
    first = descriptors.open_descriptors(shown, rows, cache_dir=tmp_path)
    for row, values in zip(rows, first, strict=True):
        np.testing.assert_array_equal(values, descriptors.describe(shown.images[row]))
    assert shown.reads.sum() == 3
    more = np.array([4, 5, 17])
    again = descriptors.open_descriptors(shown, more, cache_dir=tmp_path)
    np.testing.assert_array_equal(again[[0, 2]], first[[2, 1]])
    assert shown.reads[more].tolist() == [1, 1, 1]
    assert len(list((tmp_path / "descriptors").iterdir())) == 1


def test_other_cells_have_figures_of_their_own(tmp_path):
    images = np.stack([cell(10), cell(20)])
    shown = [Shown(images), Shown(images), Shown(images), Shown(images[::-1])]
    shown[1].crop = 80
    shown[2].size = 97
    shown[3].table = shown[0].table.take([1, 0])
    for number, cells in enumerate(shown, start=1):
        descriptors.open_descriptors(cells, np.arange(2), cache_dir=tmp_path)
        assert len(list((tmp_path / "descriptors").iterdir())) == number


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_damaged_figures_are_computed_again(damage, tmp_path):
    shown = Shown(np.stack([cell(10), cell(20)]))
    rows = np.arange(2)
    first = descriptors.open_descriptors(shown, rows, cache_dir=tmp_path)
    (path,) = (tmp_path / "descriptors").iterdir()
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-40])
    elif damage == "flipped":
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    else:
        np.savez(path, values=np.zeros((5, 5)))
    again = descriptors.open_descriptors(shown, rows, cache_dir=tmp_path)
    np.testing.assert_array_equal(again, first)
    assert shown.reads.tolist() == [2, 2]


def test_what_was_computed_before_an_interruption_is_kept(tmp_path):
    class Interrupted(Shown):
        def __getitem__(self, row):
            if row == 150:
                raise KeyboardInterrupt
            return super().__getitem__(row)

    images = np.repeat(cell(10)[np.newaxis, ::4, ::4], 200, axis=0)
    with pytest.raises(KeyboardInterrupt):
        descriptors.open_descriptors(
            Interrupted(images), np.arange(200), cache_dir=tmp_path
        )
    shown = Shown(images)
    descriptors.open_descriptors(shown, np.arange(200), cache_dir=tmp_path)
    assert 50 <= shown.reads.sum() < 200
    assert shown.reads[150] == 1


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "descriptors").write_text("a file")
    with pytest.raises(InputError, match="--cache"):
        descriptors.open_descriptors(
            Shown(cell()[np.newaxis]), np.arange(1), cache_dir=tmp_path
        )
