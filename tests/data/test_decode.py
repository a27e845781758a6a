import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from allcls_jax.data.transforms import BadImage, decode
from allcls_jax.errors import InputError
from tests.data.pictures import cell_image, encode, random_pixels


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("BMP", {}),
        ("PNG", {}),
        ("PNG", {"compress_level": 0}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_lossless_formats_come_back_exactly(kind: str, options: dict[str, str]):
    photo = random_pixels()
    image = decode(encode(photo, kind, **options), name="x")
    np.testing.assert_array_equal(image, photo)
    assert image.dtype == np.uint8
    image[0, 0] = 0  # writable


def test_jpeg_comes_back_nearly():
    image = decode(encode(cell_image(), "JPEG", quality=95), name="x")
    assert np.abs(image.astype(int) - cell_image()).mean() < 0.5


@pytest.mark.parametrize("kind", ["BMP", "PNG", "JPEG", "TIFF"])
def test_grey_has_three_equal_channels(kind: str):
    grey = np.full((8, 8), 77, np.uint8)
    image = decode(encode(grey, kind), name="x")
    np.testing.assert_array_equal(image, np.full((8, 8, 3), 77))


def test_one_bit_becomes_black_and_white():
    bits = np.array([[True, False], [False, True]])
    image = decode(encode(Image.fromarray(bits), "PNG"), name="x")
    np.testing.assert_array_equal(image[..., 1], [[255, 0], [0, 255]])


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF"])
def test_palette_becomes_its_colours(kind: str):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    image = decode(encode(picture, kind), name="x")
    np.testing.assert_array_equal(image, [[[10, 20, 30], [200, 100, 50]]])


@pytest.mark.parametrize(("kind", "tolerance"), [("TIFF", 0), ("JPEG", 2)])
def test_cmyk_becomes_rgb(kind: str, tolerance: int):
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 51))  # cyan, a fifth of black
    image = decode(encode(cmyk, kind), name="x")
    np.testing.assert_allclose(
        image, np.full((16, 16, 3), [0, 204, 204]), atol=tolerance
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparent_pixels_are_laid_over_black(kind: str):
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]])
    image = decode(encode(rgba.astype(np.uint8), kind), name="x")
    np.testing.assert_array_equal(image, [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]])


def test_transparent_grey_is_laid_over_black():
    pair = np.array([[[200, 255], [200, 0]]], np.uint8)
    image = decode(encode(Image.fromarray(pair), "PNG"), name="x")
    np.testing.assert_array_equal(image[..., 0], [[200, 0]])


def test_transparent_colour_of_a_palette_is_laid_over_black():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    image = decode(encode(picture, "PNG", transparency=1), name="x")
    np.testing.assert_array_equal(image, [[[10, 20, 30], [0, 0, 0]]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str):
    deep = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    image = decode(encode(deep, kind), name="x")
    np.testing.assert_array_equal(image[..., 2], [[0, 0, 1, 1, 128, 255]])


def test_sixteen_bit_colour_is_scaled_to_eight():
    rows = b"\0" + struct.pack(">6H", 65535, 0, 32896, 514, 25700, 51400)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )  # fmt: skip
    image = decode(png, name="x")
    np.testing.assert_array_equal(image, [[[255, 0, 128], [2, 100, 200]]])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_orientation_tag_is_obeyed(kind: str):
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned = decode(encode(image, kind, exif=exif), name="x")
    assert turned.shape == (32, 16, 3)
    assert turned[:12].min() > 190
    assert turned[20:].max() < 10


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_damaged_camera_data_is_passed_over():
    data = encode(cell_image(32), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data, name="x").shape == (32, 32, 3)


def test_main_picture_of_a_phone_is_taken():
    first, second = (Image.new("L", (16, 16), level) for level in (200, 50))
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert decode(data, name="x").mean() > 190


@pytest.mark.parametrize("kind", ["BMP", "PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_cut_off_picture_is_refused(kind: str, share: float):
    data = encode(random_pixels(shape=(64, 64, 3)), kind)
    with pytest.raises(BadImage, match=r"dir/x\.bmp: .*again"):
        decode(data[: int(len(data) * share)], name="dir/x.bmp")


def _huge_png(side: int) -> bytes:
    """A PNG whose header promises more than it holds."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
        + header
        + crc
        + encode(random_pixels(), "PNG")[33:]
    )


@pytest.mark.parametrize("side", [10_001, 12_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_picture_of_too_many_pixels_is_refused_before_it_is_decoded(side: int):
    with pytest.raises(BadImage, match="more than 100,000,000 pixels"):
        decode(_huge_png(side), name="x")


def test_pillows_own_refusal_of_size_is_a_bad_image():
    with pytest.raises(BadImage, match="more than 100,000,000 pixels"):
        decode(_huge_png(12_000), name="x")


def _frames(kind: str) -> bytes:
    first, second = (Image.fromarray(random_pixels(seed)) for seed in (0, 1))
    return encode(first, kind, save_all=True, append_images=[second])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "not a picture in one of the formats BMP, PNG"),
        (bytes(1000), "not a picture"),
        (encode(random_pixels(), "GIF"), "not a picture"),
        (encode(random_pixels(), "PPM"), "not a picture"),
        (_frames("TIFF"), "holds 2 pictures"),
        (_frames("PNG"), "holds 2 pictures"),
        (encode(Image.new("F", (4, 4)), "TIFF"), "range is not known"),
        (encode(Image.new("I", (4, 4)), "TIFF"), "range is not known"),
        (_huge_png(0), "x: "),
    ],
)
def test_data_that_is_no_single_picture_is_refused(data: bytes, reason: str):
    with pytest.raises(BadImage) as caught:
        decode(data, name="x")
    assert str(caught.value).startswith("x: ")
    assert reason in str(caught.value)
    assert isinstance(caught.value, InputError)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd metadata
def test_damaged_bytes_give_a_picture_or_a_bad_image():
    rng = random.Random(0)
    refused = 0
    for kind in ("BMP", "PNG", "JPEG", "TIFF"):
        whole = encode(random_pixels(shape=(16, 16, 3)), kind)
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(4):
                data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
            try:
                image = decode(bytes(data), name="x")
            except BadImage:
                refused += 1
            else:
                assert image.ndim == 3
    assert refused > 20
