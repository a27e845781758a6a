"""From the bytes of one picture to the square that is stored, on the host.

An image here is a (height, width, 3) uint8 array of RGB grey levels. One cell lies on
a background of exact zeros, whichever format it came in: nothing may tell the formats
apart.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps, TiffImagePlugin

from allcls_jax.data.cell_mask import box_of, find_cell
from allcls_jax.errors import InputError

FORMATS = ("BMP", "PNG", "JPEG", "TIFF")
MAX_PIXELS = 100_000_000


class BadImage(InputError):
    """A picture that cannot be decoded."""


def decode(data: bytes, *, name: str) -> np.ndarray:
    """Returns the picture in an encoded file.

    Pixel values are taken as stored: colour profiles are not applied. Grey, palette and
    CMYK become RGB, transparent pixels are laid over black, 16-bit grey levels are
    scaled so that 65535 becomes 255. A camera's orientation tag is obeyed, as every
    viewer does. Of a phone's multi-picture JPEG the main picture is taken.

    Args:
      data: a whole BMP, PNG, JPEG or TIFF file.
      name: what to call it in an error.

    Returns:
      (height, width, 3) uint8 RGB, writable.

    Raises:
      BadImage: if the data is empty, cut off, of another format or of a pixel type
        without a known range (such as floats), or holds several pictures, no pixels,
        or more than `MAX_PIXELS`.
    """
    return np.array(_decoded(data, name))


def num_pixels(data: bytes, *, name: str) -> int:
    """Returns how many pixels decoding a picture takes, by its header alone.

    These are the picture's own, or those of a TIFF's tile or strip where it is larger.

    Args:
      data: a whole BMP, PNG, JPEG or TIFF file.
      name: what to call it in an error.

    Raises:
      BadImage: if the header cannot be read, or tells of more than `MAX_PIXELS`.
    """
    with _opened(data, name) as picture:
        return _num_pixels(picture)


def zero_background(image: np.ndarray) -> np.ndarray:
    """Returns the picture of one cell with everything beside the cell set to 0.

    The cell is the largest connected region above the dark background. A lossless
    picture has a background of exact zeros and comes out unchanged, faint pixels of
    the cell's own soft edge included; only pieces that do not touch the cell are
    removed. A lossy picture has faint noise around the cell: there the cell is what is
    brighter than noise can be. Holes of the mask inside the cell are background too,
    dark stain is not.

    Args:
      image: (height, width, 3) uint8.

    Returns:
      A new array of the same shape. A picture without a dark background (at least half
      of its outermost pixels), or without anything brighter than one, comes out
      unchanged.
    """
    # np.maximum of planes is several times faster than image.max(axis=-1).
    level = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    box = box_of(level > 0)
    found = find_cell(level[box], box, level.shape)
    if found is None:
        return image.copy()
    box, cell = found
    clean = np.zeros_like(image)
    np.copyto(clean[box], image[box], where=cell[..., None])
    return clean


def centre_square(image: np.ndarray, side: int) -> np.ndarray:
    """Returns the square about the picture's centre, cut or filled up with black.

    Where the difference is odd, the picture's extra row or column is cut from, and the
    extra black one put at, its end.

    Args:
      image: (height, width, 3) uint8.
      side: of the square, in pixels, at least 1.

    Returns:
      (side, side, 3) uint8, a new array.
    """
    square = np.zeros((side, side, *image.shape[2:]), image.dtype)
    rows, to_rows = _overlap(image.shape[0], side)
    columns, to_columns = _overlap(image.shape[1], side)
    square[to_rows, to_columns] = image[rows, columns]
    return square


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the picture resampled bilinearly, antialiased when it shrinks.

    Args:
      image: (height, width, 3) uint8; a square, if its proportions are to be kept.
      size: of the result's sides, in pixels, at least 1.

    Returns:
      (size, size, 3) uint8.
    """
    if image.shape[:2] == (size, size):
        return image.copy()
    picture = Image.fromarray(image)
    whole = (0, 0, *picture.size)
    box = picture.getbbox() or (0, 0, 0, 0)
    # Three quarters of most pictures of a cell are black.
    if box != whole and picture.width == picture.height:
        side = picture.width
        return np.array(_resized(picture.crop(box), box[:2], side, size))
    return np.array(picture.resize((size, size), Image.Resampling.BILINEAR))


def prepare(
    data: bytes, *, name: str, max_side: int | None, crop: int | None, size: int
) -> tuple[np.ndarray, int]:
    """Returns the square that is stored for one cell, and the cell's area.

    In this order: decode, cut to the centre square of `max_side`, set the background to
    zero, fill up to a square with black, cut or fill up to the centre `crop`, resize.

    Args:
      data: a whole BMP, PNG, JPEG or TIFF file.
      name: what to call it in an error.
      max_side: pixels; a picture that is larger in height or width is cut to its centre
        square of this side first. None: never.
      crop: side in pixels of the centre square to keep. None: the whole.
      size: of the result's sides, in pixels.

    Returns:
      (size, size, 3) uint8 RGB, and the number of pixels that are not background,
      before cropping and resizing.

    Raises:
      BadImage: as `decode`.
    """
    # On the decoder's own pictures, and on the box around the cell alone: `decode`,
    # `zero_background`, `centre_square` and `resize` give the same pixels, and arrays
    # of whole pictures take most of their time.
    picture = _decoded(data, name)
    if max_side is not None and max(picture.size) > max_side:
        picture = _centred(picture, max_side)
    left, top, right, bottom = picture.getbbox() or (0, 0, 0, 0)
    cut = picture.crop((left, top, right, bottom))
    red, green, blue = cut.split()
    level = np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue))
    box = slice(top, bottom), slice(left, right)
    found = find_cell(level, box, (picture.height, picture.width))
    area = int(np.count_nonzero(level))
    if found is not None:
        (rows, columns), cell = found
        area = int(np.count_nonzero(cell))
        left, top = columns.start, rows.start
        cut = picture.crop((left, top, columns.stop, rows.stop))
        cut.paste((0, 0, 0), mask=Image.fromarray(~cell))
    side = crop or max(picture.size)
    at = left - _start(picture.width, side), top - _start(picture.height, side)
    return np.array(_resized(cut, at, side, size)), area


def encode_png(image: np.ndarray, level: int = 1) -> bytes:
    """Returns the picture as a PNG file.

    Args:
      image: (height, width, 3) uint8 RGB.
      level: of compression, 0 (none, fast) to 9 (small, slow).
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=level)
    return file.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """Returns the picture of `encode_png`: (height, width, 3) uint8 RGB, writable."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return np.array(picture)


def _decoded(data: bytes, name: str) -> Image.Image:
    """Returns the picture in an encoded file, loaded, RGB; raises as `decode`."""
    with _opened(data, name) as picture:
        _check_frame(picture, name)
        picture.load()
        return _to_rgb(_upright(picture), name)


@contextlib.contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """Gives a picture of which the header is read; what goes wrong is a `BadImage`."""
    if not data:
        raise _bad(name, "the file is empty", "copy or download it again")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            yield picture
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise _bad(
            name,
            f"not a picture in one of the formats {', '.join(FORMATS)}, or its header "
            "is damaged",
            "convert it, or copy it again",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bad(name, *_TOO_LARGE) from error
    except Exception as error:
        # What decoders raise on damaged bytes is an open list, and none of it is ours.
        raise _bad(
            name, f"cannot be decoded ({error})", "copy or download it again"
        ) from error


def _resized(
    part: Image.Image, at: tuple[int, int], side: int, size: int
) -> Image.Image:
    """Returns a black square with a part of it filled, resampled bilinearly.

    Lines first, then columns, as Pillow does with squares, and each only where it is
    not all black.

    Args:
      part: what is not black.
      at: column and row of the square at which it begins; it may reach beyond it.
      side: of the square, pixels.
      size: of the result's sides, pixels.
    """
    left, top = at
    result = Image.new("RGB", (size, size))
    if side == size:
        result.paste(part, at)
        return result
    first, last = max(top, 0), min(top + part.height, side)
    scale = side / size
    # Pixels of the result whose sum may reach the part; two more than enough.
    reach = max(scale, 1) + 1
    begin = max(0, int((left - reach) / scale) - 2)
    end = min(size, int((left + part.width + reach) / scale) + 2)
    if first >= last or begin >= end:
        return result
    lines = Image.new("RGB", (side, last - first))
    lines.paste(part, (left, top - first))
    lines = lines.resize((size, last - first), Image.Resampling.BILINEAR)
    columns = Image.new("RGB", (end - begin, side))
    columns.paste(lines.crop((begin, 0, end, last - first)), (0, first))
    columns = columns.resize((end - begin, size), Image.Resampling.BILINEAR)
    result.paste(columns, (begin, 0))
    return result


_ALL_ROWS = 2**32 - 1  # a TIFF's word for one strip with all there are

_TOO_LARGE = (
    f"has more than {MAX_PIXELS:,} pixels",
    "give a smaller part of it",
)


def _bad(name: str, what: str, remedy: str) -> BadImage:
    """The error for one picture."""
    return BadImage(f"{name}: {what}; {remedy}")


def _check_frame(picture: Image.Image, name: str) -> None:
    """Refuses what can be told from the header alone."""
    width, height = picture.size
    if width < 1 or height < 1:
        raise _bad(name, f"has {width} x {height} pixels", "leave it out")
    if _num_pixels(picture) > MAX_PIXELS:
        raise _bad(name, *_TOO_LARGE)
    frames = getattr(picture, "n_frames", 1)
    # The further pictures of a phone's JPEG (MPO) are previews of the first.
    if frames > 1 and picture.format != "MPO":
        raise _bad(name, f"holds {frames} pictures", "save each as a file of its own")


def _num_pixels(picture: Image.Image) -> int:
    """Returns the pixels of what the decoder makes room for."""
    most = picture.width * picture.height
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return most
    tags = picture.tag_v2
    width, length, rows = (
        int(tags.get(tag, 0))
        for tag in (
            TiffImagePlugin.TILEWIDTH,
            TiffImagePlugin.TILELENGTH,
            TiffImagePlugin.ROWSPERSTRIP,
        )
    )
    if rows == _ALL_ROWS or picture.tile[0].codec_name != "libtiff":
        rows = 0  # nothing is made for a strip
    return max(most, width * length, picture.width * rows)


def _upright(picture: Image.Image) -> Image.Image:
    """Obeys the orientation tag; Pillow has already done so for a TIFF."""
    try:
        if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return picture  # not a copy of it
        return ImageOps.exif_transpose(picture)
    except Exception:
        # Damaged camera data says nothing about the pixels.
        return picture


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """Returns any pixel type as RGB."""
    if picture.mode.startswith("I;16") or (
        picture.mode == "I" and picture.format == "PNG"
    ):
        deep = np.asarray(picture).astype(np.uint32)
        grey = ((deep * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("I", "F"):
        raise _bad(
            name,
            f"has pixels of type {picture.mode!r} (32-bit), whose range is not known",
            "save it with 8 or 16 bits",
        )
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, layered)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _start(length: int, side: int) -> int:
    """Where the centred line of `side` pixels begins in one of `length`, or before."""
    spare = abs(length - side) // 2
    return spare if length >= side else -spare


def _overlap(length: int, side: int) -> tuple[slice, slice]:
    """Where a line of `length` pixels and its centred line of `side` pixels meet."""
    start = _start(length, side)
    if length >= side:
        return slice(start, start + side), slice(None)
    return slice(None), slice(-start, -start + length)


def _centred(picture: Image.Image, side: int) -> Image.Image:
    """Returns `centre_square` of a picture."""
    left, top = _start(picture.width, side), _start(picture.height, side)
    return picture.crop((left, top, left + side, top + side))
