import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from scipy import ndimage

from allcls_jax.data import transforms
from allcls_jax.data.transforms import BadImage, decode, prepare, zero_background
from tests.data.pictures import SIDE, cell_image, cell_mask, encode, random_pixels


def _away_from(mask: np.ndarray) -> np.ndarray:
    """The pixels more than two and a half pixels beside the mask."""
    distance = np.empty(mask.shape)
    ndimage.distance_transform_edt(~mask, distances=distance)
    return distance > 2.5


# --- zero_background


@pytest.mark.parametrize("level", [60, 90, 130, 200])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize(
    # A coarse JPEG smears the edge itself by a pixel or two.
    ("quality", "smeared"),
    [(50, 400), (75, 300), (90, 40), (95, 2), (100, 0)],
)
def test_noise_of_jpeg_beside_the_cell_becomes_zero(
    level: int, subsampling: int, quality: int, smeared: int
):
    mask = cell_mask()
    data = encode(
        cell_image(level=level), "JPEG", quality=quality, subsampling=subsampling
    )
    image = decode(data, name="x")
    clean = zero_background(image)
    kept = np.any(clean, axis=-1)
    assert np.any(image[~mask], axis=-1).sum() > 400
    assert not clean[_away_from(mask)].any()
    assert kept[~mask].sum() <= smeared
    assert kept[mask].mean() > 0.999
    np.testing.assert_array_equal(clean[kept], image[kept])


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF"])
def test_lossless_cell_comes_out_unchanged(kind: str):
    cell = cell_image()
    cell[cell_mask()] = np.maximum(
        random_pixels(1, cell.shape)[cell_mask()], 1
    )  # down to grey level 1
    clean = zero_background(decode(encode(cell, kind), name="x"))
    np.testing.assert_array_equal(clean, cell)


def test_soft_edge_of_a_lossless_cell_is_kept():
    soft = np.asarray(Image.fromarray(cell_image(900)).resize((SIDE, SIDE)))
    assert ((soft.max(-1) > 0) & (soft.max(-1) < 20)).sum() > 20
    np.testing.assert_array_equal(zero_background(soft), soft)


def test_faint_dirt_of_a_lossless_picture_is_removed():
    cell = cell_image()
    cell[20:23, 400:404] = 5
    np.testing.assert_array_equal(zero_background(cell), cell_image())


@pytest.mark.parametrize("kind", ["BMP", "JPEG"])
def test_bright_corner_is_removed(kind: str):
    cell = cell_image()
    cell[:40, -60:] = 150
    clean = zero_background(decode(encode(cell, kind), name="x"))
    assert not clean[_away_from(cell_mask())].any()
    assert clean[cell_mask()].any(axis=-1).mean() > 0.99


def test_piece_that_touches_the_cell_is_kept():
    cell = cell_image()
    cell[230:240, :200] = np.maximum(cell[230:240, :200], 80)
    np.testing.assert_array_equal(zero_background(cell), cell)


def test_dark_stain_inside_a_lossy_cell_is_kept_and_holes_are_not():
    cell = cell_image()
    stain = np.zeros(cell.shape[:2], bool)
    stain[260:280, 190:210] = True
    cell[stain] = (14, 8, 20)
    image = decode(encode(cell, "JPEG", quality=90), name="x")
    clean = zero_background(image)
    np.testing.assert_array_equal(clean[stain], image[stain])
    beside = _away_from(cell_mask())
    assert beside[202, 225]  # the hole is among it
    assert not clean[beside].any()


@pytest.mark.parametrize("seed", range(3))
def test_photo_without_dark_background_comes_out_unchanged(seed: int):
    photo = 40 + random_pixels(seed, (90, 120, 3)) // 2
    photo[30:60, 40:80] //= 8  # a dark cell on bright ground
    np.testing.assert_array_equal(zero_background(photo), photo)


@pytest.mark.parametrize("level", [0, 3, 24])
def test_picture_with_nothing_on_it_comes_out_unchanged(level: int):
    image = np.full((30, 40, 3), level, np.uint8)
    np.testing.assert_array_equal(zero_background(image), image)


def test_result_is_a_new_array():
    for image in (cell_image(), np.zeros((4, 4, 3), np.uint8), random_pixels() | 64):
        before = image.copy()
        zero_background(image)[:] = 99
        np.testing.assert_array_equal(image, before)


def test_background_takes_a_few_milliseconds():
    image = decode(encode(cell_image(), "JPEG"), name="x")
    times = []
    for _ in range(20):
        start = time.perf_counter()
        zero_background(image)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01  # measured: 1.5 ms


# --- geometry


@pytest.mark.parametrize(
    ("length", "side", "expected"),
    [
        (6, 2, [3, 4]),
        (5, 2, [2, 3]),
        (5, 3, [2, 3, 4]),
        (3, 3, [1, 2, 3]),
        (2, 4, [0, 1, 2, 0]),
        (2, 5, [0, 1, 2, 0, 0]),
        (1, 4, [0, 1, 0, 0]),
    ],
)
def test_centre_square_cuts_and_fills_about_the_centre(
    length: int, side: int, expected: list[int]
):
    line = np.arange(1, length + 1, dtype=np.uint8)
    image = np.broadcast_to(line[:, None, None], (length, side, 3))
    square = transforms.centre_square(image, side)
    assert square.shape == (side, side, 3)
    np.testing.assert_array_equal(square[:, 0, 0], expected)
    across = transforms.centre_square(image.transpose(1, 0, 2), side)
    np.testing.assert_array_equal(across, square.transpose(1, 0, 2))


def test_centre_square_cuts_one_side_and_fills_the_other():
    image = random_pixels(0, (6, 2, 3))
    square = transforms.centre_square(image, 4)
    np.testing.assert_array_equal(square[:, 1:3], image[1:5])
    assert not square[:, [0, 3]].any()


@pytest.mark.parametrize("size", [8, 45, 90, 200])
def test_resize_is_pillows_bilinear(size: int):
    photo = random_pixels(0, (90, 90, 3))
    expected = Image.fromarray(photo).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(transforms.resize(photo, size), np.asarray(expected))


def test_resize_is_antialiased():
    # Stripes of one pixel: point sampling would keep 0 and 255.
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    small = transforms.resize(stripes, 100).astype(int)
    assert np.abs(small[:, 2:-2] - 127.5).max() < 2


def test_shrinking_by_half_weighs_neighbours_as_a_triangle():
    line = np.zeros((16, 16, 3), np.uint8)
    line[:, 6] = 240
    small = transforms.resize(line, 8)
    # Triangle of half-width 2: weights 1/8, 3/8, 3/8, 1/8 of four neighbours.
    np.testing.assert_array_equal(small[4, :, 0], [0, 0, 30, 90, 0, 0, 0, 0])


def test_png_comes_back_exactly():
    cell = cell_image()
    for level in (0, 1, 9):
        np.testing.assert_array_equal(
            decode(transforms.encode_png(cell, level), name="x"), cell
        )
        np.testing.assert_array_equal(
            transforms.decode_png(transforms.encode_png(cell, level)), cell
        )
    small, large = (len(transforms.encode_png(cell, level)) for level in (9, 0))
    assert small < len(transforms.encode_png(cell)) < large


# --- prepare


def square(data: bytes, **settings) -> np.ndarray:
    return prepare(data, **settings)[0]


@pytest.mark.parametrize("kind", ["BMP", "JPEG"])
def test_the_area_is_that_of_the_cell_as_it_came(kind: str):
    cell = cell_image()
    pixels = np.count_nonzero(cell.any(axis=-1))
    for crop, size in ((None, 64), (100, 32)):
        data = encode(cell, kind)
        _, area = prepare(data, name="x", max_side=SIDE, crop=crop, size=size)
        assert area == pytest.approx(pixels, rel=0 if kind == "BMP" else 0.02)


def test_final_part_is_cut_to_its_centre_first():
    cell = cell_image()
    wide = transforms.centre_square(cell, 600)
    assert (
        square(
            encode(wide, "BMP"), name="x", max_side=SIDE, crop=None, size=224
        ).tobytes()
        == (
            square(encode(cell, "BMP"), name="x", max_side=SIDE, crop=None, size=224)
        ).tobytes()
    )


def test_smaller_picture_is_not_cut():
    cell = cell_image(300)
    image = square(encode(cell, "PNG"), name="x", max_side=450, crop=None, size=300)
    np.testing.assert_array_equal(image, cell)


@pytest.mark.parametrize("shape", [(30, 50, 3), (50, 30, 3)])
def test_picture_that_is_no_square_keeps_its_proportions(shape: tuple[int, ...]):
    photo = 60 + random_pixels(0, shape) // 2
    image = square(encode(photo, "PNG"), name="x", max_side=None, crop=None, size=50)
    np.testing.assert_array_equal(image, transforms.centre_square(photo, 50))


@pytest.mark.parametrize("crop", [300, 500])
def test_crop_is_a_centre_square_before_resizing(crop: int):
    cell = cell_image()
    image = square(encode(cell, "PNG"), name="x", max_side=450, crop=crop, size=64)
    expected = transforms.resize(transforms.centre_square(cell, crop), 64)
    np.testing.assert_array_equal(image, expected)


def test_bad_picture_is_named():
    with pytest.raises(BadImage, match=r"a/b\.bmp: the file is empty"):
        square(b"", name="a/b.bmp", max_side=None, crop=None, size=64)


def _assert_equal_from_bmp_and_jpeg(cell: np.ndarray) -> None:
    """The same cell must not tell by its values in which format it was kept."""
    whole = {"max_side": SIDE, "crop": None, "name": "x"}
    bmp, jpeg = encode(cell, "BMP"), encode(cell, "JPEG", quality=95)
    a, b = (square(data, size=224, **whole) for data in (bmp, jpeg))
    difference = np.abs(a.astype(int) - b)
    assert difference.mean() < 0.25
    a, b = (square(data, size=SIDE, **whole) for data in (bmp, jpeg))
    zero_a, zero_b = ((image == 0).all(-1) for image in (a, b))
    assert (zero_a != zero_b).mean() < 3e-4
    # Beyond the edge itself there is not one pixel of difference.
    assert zero_b[_away_from(~zero_a)].all()


def test_bmp_and_jpeg_of_one_cell_are_prepared_alike():
    _assert_equal_from_bmp_and_jpeg(cell_image())


def test_bmp_and_jpeg_of_real_cells_are_prepared_alike(cnmc_dir: Path):
    paths = sorted(cnmc_dir.rglob("*.jpg")) or sorted(cnmc_dir.rglob("*.bmp"))
    for path in paths[::900]:
        image = decode(path.read_bytes(), name=str(path))
        _assert_equal_from_bmp_and_jpeg(zero_background(image))


def test_real_cells_lose_their_noise_and_nothing_else(cnmc_dir: Path):
    paths = sorted(cnmc_dir.rglob("*.jpg"))
    if not paths:
        pytest.skip("the cells in ALLCLS_CNMC_DIR are no JPEGs")
    areas, noise = [], []
    for path in paths[::100]:
        image = decode(path.read_bytes(), name=str(path))
        level, clean = image.max(-1), zero_background(image)
        kept = clean.any(-1)
        np.testing.assert_array_equal(clean[kept], image[kept])
        assert level[~kept].max() <= 40  # the darkest inside a cell has 44
        assert level[kept].min() > 24
        areas.append(kept.sum())
        noise.append((level[~kept] > 0).mean())
    # Of all 10,661: area 33,000 on average, 2.9 % noise.
    assert 31_000 < np.mean(areas) < 35_000
    assert 0.02 < np.mean(noise) < 0.04


# --- num_pixels


@pytest.mark.parametrize("kind", ["BMP", "PNG", "JPEG", "TIFF"])
def test_the_pixels_of_a_picture_are_told_from_its_header(kind: str):
    data = encode(random_pixels(shape=(30, 20, 3)), kind)
    assert transforms.num_pixels(data, name="x") == 600
    # Without most of its pixels it cannot be decoded, and still be measured.
    assert transforms.num_pixels(data[:-300], name="x") == 600
    with pytest.raises(BadImage, match="x: not a picture"):
        transforms.num_pixels(b"these are words", name="x")


def _tiff(**tags: int) -> bytes:
    """A compressed TIFF of one pixel that tells of a larger tile or strip."""
    file = io.BytesIO()
    names = {"width": 322, "length": 323, "rows": 278}
    told = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        told[names[name]] = value
    Image.new("RGB", (1, 1)).save(file, "TIFF", compression="tiff_deflate")
    data = file.getvalue()
    with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as picture:
        held = {tag: picture.tag_v2[tag] for tag in (256, 257, 258, 259, 262, 277)}
        place, length = picture.tag_v2[273][0], picture.tag_v2[279][0]
    strip = data[place : place + length]
    for tag, value in held.items():
        told[tag] = value
    told[324 if "width" in tags else 273] = 8
    told[325 if "width" in tags else 279] = len(strip)
    start = 8 + len(strip) + len(strip) % 2
    return (
        b"II*\0" + start.to_bytes(4, "little") + strip.ljust(start - 8, b"\0")
    ) + told.tobytes(start)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"width": 8000, "length": 8000}, 64_000_000),
        ({"width": 16, "length": 16}, 256),
        ({"rows": 50_000_000}, 50_000_000),
        ({"rows": 2**32 - 1}, 1),
    ],
)
def test_the_pixels_of_a_tile_or_strip_count(tags: dict[str, int], expected: int):
    assert transforms.num_pixels(_tiff(**tags), name="x") == expected


@pytest.mark.parametrize(
    "tags", [{"width": 16_000, "length": 16_000}, {"rows": 200_000_000}]
)
def test_a_tile_or_strip_that_is_too_large_is_not_decoded(tags: dict[str, int]):
    with pytest.raises(BadImage, match="x: has more than 100,000,000 pixels"):
        prepare(_tiff(**tags), name="x", max_side=None, crop=None, size=8)
