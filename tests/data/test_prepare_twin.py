"""The quick way from a file to the stored square, against the plain one, bit for bit.

The plain one works on whole pictures, one step after another.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from allcls_jax.data.transforms import (
    centre_square,
    decode,
    prepare,
    resize,
    zero_background,
)
from tests.data.pictures import cell_image, encode, random_pixels


def plain_zero_background(image: np.ndarray) -> np.ndarray:
    """`zero_background` as its docstring tells it, without boxes."""
    level = image.max(axis=-1)
    edge = np.concatenate([level[0], level[-1], level[:, 0], level[:, -1]])
    above = np.sort(level[level > 24])
    if np.mean(edge <= 24) < 0.5 or not len(above):
        return image
    threshold = max(24, int(0.3 * above[(len(above) - 1) // 2]))
    bright = level > threshold
    near = np.empty_like(bright)
    ndimage.maximum_filter(bright, size=5, mode="constant", output=near)
    if not np.any((level > 0) & ~near):
        return np.where(largest(level > 0)[..., None], image, 0)
    cell = largest(bright)
    holes, number = regions(np.pad(~cell, 1, constant_values=True), None)
    for hole in range(1, number + 1):
        here = (holes == hole)[1:-1, 1:-1]
        if hole != holes[0, 0] and level[here].min() > 8:
            cell |= here
    return np.where(cell[..., None], image, 0)


def largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = regions(mask, np.ones((3, 3)))
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def regions(mask: np.ndarray, touching: np.ndarray | None) -> tuple[np.ndarray, int]:
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, touching, output=labels)
    return labels, int(labels.max())


def plain_prepare(
    data: bytes, *, max_side: int | None, crop: int | None, size: int
) -> tuple[np.ndarray, int]:
    image = decode(data, name="x")
    if max_side is not None and max(image.shape[:2]) > max_side:
        image = centre_square(image, max_side)
    image = plain_zero_background(image)
    square = Image.fromarray(centre_square(image, crop or max(image.shape[:2])))
    small = square.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small), int(np.count_nonzero(image.any(axis=-1)))


def assert_twins(data: bytes, **settings) -> None:
    image, area = prepare(data, name="x", **settings)
    expected, expected_area = plain_prepare(data, **settings)
    np.testing.assert_array_equal(image, expected)
    assert area == expected_area
    whole = decode(data, name="x")
    np.testing.assert_array_equal(zero_background(whole), plain_zero_background(whole))


SETTINGS = [
    {"max_side": 450, "crop": None, "size": 224},
    {"max_side": 450, "crop": 300, "size": 224},
    {"max_side": 80, "crop": None, "size": 33},
    {"max_side": None, "crop": 131, "size": 131},
    {"max_side": None, "crop": 37, "size": 100},
    {"max_side": None, "crop": 700, "size": 7},
]


def pictures() -> dict[str, np.ndarray]:
    """Cells in the middle, at a side, in several pieces, very faint, or not at all."""
    cell = cell_image(120, level=130)
    stained = cell.copy()
    stained[60:64, 52:56] = 12  # dark, not black: stays
    stained[70:74, 60:64] = 3  # as good as black: a hole
    faint = cell_image(90, level=25)
    pieces = cell.copy()
    pieces[5:12, 100:110] = 200
    pieces[0, :] = 9
    off = np.zeros((150, 110, 3), np.uint8)
    off[:90, 40:] = cell[30:, 20:90]
    channel = cell * np.array([0, 0, 1], np.uint8)
    return {
        "middle": cell,
        "stained": stained,
        "faint": faint,
        "pieces": pieces,
        "at a corner": off,
        "wide": off.transpose(1, 0, 2),
        "one channel": channel,
        "black": np.zeros((50, 40, 3), np.uint8),
        "bright": 60 + random_pixels(3, (61, 90, 3)) // 2,
        "noise": random_pixels(4, (70, 70, 3)) // 9,
        "a pixel": np.pad(np.full((1, 1, 3), 77, np.uint8), ((9, 5), (3, 8), (0, 0))),
        "one line": random_pixels(5, (1, 64, 3)),
    }


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_drawn_pictures_come_out_as_the_plain_way_has_them(kind: str, settings: dict):
    for picture in pictures().values():
        assert_twins(encode(picture, kind), **settings)


@pytest.mark.parametrize("size", [7, 64, 90, 120, 203])
def test_black_margins_change_nothing_in_resizing(size: int):
    margins = [
        np.pad(random_pixels(i, (h, w, 3)), ((a, b), (c, d), (0, 0)))
        for i, (h, w, a, b, c, d) in enumerate(
            [
                (20, 30, 0, 70, 30, 30),
                (1, 1, 89, 0, 0, 119),
                (60, 50, 15, 15, 20, 20),
                (90, 3, 0, 0, 44, 43),
                (2, 120, 30, 58, 0, 0),
            ]
        )
    ]
    for picture in [*margins, *pictures().values()]:
        expected = Image.fromarray(picture).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        np.testing.assert_array_equal(resize(picture, size), np.asarray(expected))


def test_real_pictures_come_out_as_the_plain_way_has_them(cnmc_dir: Path):
    paths = sorted([*cnmc_dir.rglob("*.jpg"), *cnmc_dir.rglob("*.bmp")])
    assert paths
    for number, path in enumerate(paths[::150]):
        assert_twins(path.read_bytes(), **SETTINGS[number % len(SETTINGS)])
