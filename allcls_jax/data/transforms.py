"""From the bytes of one picture to the square that is stored, on the host.

An image here is a (height, width, 3) uint8 array of RGB grey levels. One cell lies on
a background of exact zeros, whichever format it came in: nothing may tell the formats
apart.
"""

import io

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from allcls_jax.errors import InputError

FORMATS = ("BMP", "PNG", "JPEG", "TIFF")
MAX_PIXELS = 100_000_000

# Grey levels of the brightest channel. On the C-NMC pictures the noise that JPEG leaves
# beside a cell stays below 24 or, where the cell is brighter, below 0.3 of its level;
# the darkest pixel inside a cell has 44.
_DARK = 24
_DARK_SHARE = 0.3
# An enclosed dark region that comes down to this is a hole in the mask, not dark stain.
_HOLE = 8
# Faint pixels this near to the cell, in pixels, may be its own soft edge.
_SOFT_EDGE = 2


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
    if not data:
        raise _bad(name, "the file is empty", "copy or download it again")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_frame(picture, name)
            picture.load()
            return _to_rgb(_upright(picture), name)
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
    edge = np.concatenate([level[0], level[-1], level[:, 0], level[:, -1]])
    if 2 * np.count_nonzero(edge <= _DARK) < edge.size:
        return image.copy()
    # What follows looks only at the box that is not black: a quarter of most pictures.
    box = _box(level > 0)
    level = level[box]
    histogram = np.bincount(level.ravel(), minlength=256)
    if not histogram[_DARK + 1 :].any():
        return image.copy()
    threshold = max(_DARK, int(_DARK_SHARE * _median_above(histogram, _DARK)))
    bright = level > threshold
    occupied = level > 0
    noisy = bool((occupied & ~_widen(bright, _SOFT_EDGE)).any())
    cell = _largest_region(bright if noisy else occupied)
    if noisy:
        cell = _with_dark_stain(cell, level)
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
    picture = Image.fromarray(image)
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
    image = decode(data, name=name)
    if max_side is not None and max(image.shape[:2]) > max_side:
        image = centre_square(image, max_side)
    image = zero_background(image)
    area = int(np.count_nonzero(image.any(axis=-1)))
    side = crop or max(image.shape[:2])
    if image.shape[:2] != (side, side):
        image = centre_square(image, side)
    return resize(image, size), area


def encode_png(image: np.ndarray, level: int = 1) -> bytes:
    """Returns the picture as a PNG file.

    Args:
      image: (height, width, 3) uint8 RGB.
      level: of compression, 0 (none, fast) to 9 (small, slow).
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=level)
    return file.getvalue()


_TOO_LARGE = (
    f"has more than {MAX_PIXELS:,} pixels",
    "cut out the single cells first",
)


def _bad(name: str, what: str, remedy: str) -> BadImage:
    """The error for one picture."""
    return BadImage(f"{name}: {what}; {remedy}")


def _check_frame(picture: Image.Image, name: str) -> None:
    """Refuses what can be told from the header alone."""
    width, height = picture.size
    if width < 1 or height < 1:
        raise _bad(name, f"has {width} x {height} pixels", "leave it out")
    if width * height > MAX_PIXELS:
        raise _bad(name, *_TOO_LARGE)
    frames = getattr(picture, "n_frames", 1)
    # The further pictures of a phone's JPEG (MPO) are previews of the first.
    if frames > 1 and picture.format != "MPO":
        raise _bad(
            name, f"holds {frames} pictures", "save each cell as a file of its own"
        )


def _upright(picture: Image.Image) -> Image.Image:
    """Obeys the orientation tag; Pillow has already done so for a TIFF."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        # Damaged camera data says nothing about the pixels.
        return picture


def _to_rgb(picture: Image.Image, name: str) -> np.ndarray:
    """Returns any pixel type as (height, width, 3) uint8."""
    if picture.mode.startswith("I;16") or (
        picture.mode == "I" and picture.format == "PNG"
    ):
        deep = np.asarray(picture).astype(np.uint32)
        grey = ((deep * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
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
    return np.array(picture.convert("RGB"))


def _median_above(histogram: np.ndarray, floor: int) -> int:
    """The median of the values above `floor`, of which there is at least one."""
    running = np.cumsum(histogram[floor + 1 :])
    return floor + 1 + int(np.searchsorted(running, (running[-1] + 1) // 2))


def _widen(mask: np.ndarray, reach: int) -> np.ndarray:
    """Returns the mask with all pixels within a square of `reach` pixels around it."""
    for axis in (0, 1):
        mask = np.moveaxis(mask, axis, 0)
        wide = mask.copy()
        for step in range(1, reach + 1):
            wide[step:] |= mask[:-step]
            wide[:-step] |= mask[step:]
        mask = np.moveaxis(wide, 0, axis)
    return mask


def _largest_region(mask: np.ndarray) -> np.ndarray:
    """Returns the largest set of pixels that touch at a side or corner."""
    labels, count = _regions(mask, corners=True)
    if count == 1:
        return mask
    sizes = np.bincount(labels.ravel())
    return labels == 1 + np.argmax(sizes[1:])


def _regions(mask: np.ndarray, *, corners: bool) -> tuple[np.ndarray, int]:
    """Numbers the connected regions from 1; returns the numbers and how many."""
    labels = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, np.ones((3, 3)) if corners else None, output=labels)
    assert isinstance(count, int)  # with `output`, scipy returns nothing else
    return labels, count


def _with_dark_stain(cell: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Returns the cell with the enclosed regions that are dark but not empty."""
    # A frame joins everything outside the cell into one region.
    labels, count = _regions(np.pad(~cell, 1, constant_values=True), corners=False)
    if count == 1:
        return cell
    inside = labels[1:-1, 1:-1]
    darkest = np.full(count + 1, 255, np.uint8)
    np.minimum.at(darkest, inside.ravel(), level.ravel())
    stain = darkest > _HOLE
    stain[[0, labels[0, 0]]] = False
    return cell | stain[inside]


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """The smallest rows and columns that hold all of the mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _overlap(length: int, side: int) -> tuple[slice, slice]:
    """Where a line of `length` pixels and its centred line of `side` pixels meet."""
    spare = (abs(length - side)) // 2
    if length >= side:
        return slice(spare, spare + side), slice(None)
    return slice(None), slice(spare, spare + length)
