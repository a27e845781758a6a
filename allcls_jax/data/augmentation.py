"""Random changes of training images, on the device, inside the training step.

Pure functions of images and a key. A cell's background is exactly black and stays so:
what is turned in from beyond the picture is black, and grey levels change within cells.
Each variation draws by a key named after it: whether others are on changes nothing.
The eight flips and quarter turns move pixels and change none; their numbers are drawn
on the host, since features that were computed once per view must follow the same draws.
"""

import functools
import math
import operator
import zlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.config import AugmentConfig
from allcls_jax.data import jpeg_noise
from allcls_jax.data.stain import grey_levels, is_cell, optical_density

# Places are computed in whole numbers, 2**14 to half a pixel: a compiler may compute a
# float twice and round it in two ways, and then read one pixel but weigh another.
_BITS = 14

# Optical densities of red, green and blue per unit of haematoxylin and of eosin
# (Ruifrok and Johnston, Anal Quant Cytol Histol 23:291, 2001); and at right angles.
_HAEMATOXYLIN, _EOSIN = (0.650, 0.704, 0.286), (0.072, 0.990, 0.105)
_STAINS = np.array([_HAEMATOXYLIN, _EOSIN, np.cross(_HAEMATOXYLIN, _EOSIN)])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIXING = np.linalg.inv(_STAINS)


def turn(images: jax.Array, view: jax.Array) -> jax.Array:
    """Returns each image in the view that is asked for, its pixels unchanged.

    Args:
      images: (n, s, s, channels) of any type.
      view: (n,) int32, 0 to 7, `4 * mirrored + quarter_turns`: where mirrored, columns
        are reversed first; the quarter turns that follow are counter-clockwise, as
        those of `np.rot90`.

    Returns:
      The same shape and type.
    """
    quarter, half, mirrored = view & 1, (view >> 1) & 1, view >> 2
    # A quarter turn is a reversal of columns and a transposition, a half turn reverses
    # rows and columns: so all eight are these three steps, each taken or not.
    images = _where(mirrored ^ half ^ quarter, images[:, :, ::-1], images)
    images = _where(half, images[:, ::-1], images)
    return _where(quarter, images.swapaxes(1, 2), images)


def augment(images: jax.Array, key: jax.Array, config: AugmentConfig) -> jax.Array:
    """Returns images that are varied by chance, in this order and each by its field.

    Each image draws numbers of its own, uniformly: an angle from ± `rotation` degrees,
    a zoom from 1 ± `scale` and a shift in both directions from ± `shift`; a blur from
    0 to `blur` pixels; factors of haematoxylin and of eosin from 1 ± `stain`; of all
    grey levels from 1 ± `brightness`; a coarseness of JPEG from 0 to `jpeg`; the side
    of a black square from 0 to `mask`, and its place. A strength of 0 draws and
    computes nothing, and changes no other's numbers. `config.dihedral` is not looked
    at: see `turn`.

    Args:
      images: (n, height, width, 3) uint8.
      key: of this step; the same key gives the same pictures.
      config: the strengths.

    Returns:
      (n, height, width, 3) float32, grey levels in [0, 255], not rounded.
    """
    n = len(images)

    def drawn(name: str, *shape: int, low: float = -1.0) -> jax.Array:
        """Returns float32 numbers from [low, 1), by a key of their own."""
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        numbers = jax.random.uniform(own, (n, *shape), minval=low)
        # Once for each image: compilers else draw them again for each pixel.
        return jax.lax.optimization_barrier(numbers)

    result = images.astype(jnp.float32)
    if config.rotation or config.scale or config.shift:
        upright, as_large = jnp.zeros(n), jnp.ones(n)
        result = rotate_and_zoom(
            images,
            degrees=config.rotation * drawn("rotation") if config.rotation else upright,
            zoom=1 + config.scale * drawn("scale") if config.scale else as_large,
            shift=config.shift * drawn("shift", 2) if config.shift else None,
        )
    if config.blur:
        result = blur(result, config.blur * drawn("blur", low=0.0), most=config.blur)
    if config.stain:
        result = scale_stains(result, 1 + config.stain * drawn("stain", 2))
    if config.brightness:
        factor = 1 + config.brightness * drawn("brightness", 1, 1, 1)
        result = jnp.minimum(result * factor, 255)
    if config.jpeg:
        noisy = jpeg_noise.quantise(result, config.jpeg * drawn("jpeg", low=0.0))
        result = jnp.where(is_cell(result), noisy, 0)
    if config.mask:
        side = config.mask * drawn("mask side", low=0.0)
        result = cover(result, side=side, place=drawn("mask place", 2, low=0.0))
    return result


def rotate_and_zoom(
    images: jax.Array,
    *,
    degrees: jax.Array,
    zoom: jax.Array,
    shift: jax.Array | None = None,
) -> jax.Array:
    """Returns images turned and magnified about their centre, then moved, all at once.

    Each pixel is interpolated bilinearly between the four around the place that it
    comes from; beyond the picture all is black.

    Args:
      images: (n, height, width, 3) uint8.
      degrees: (n,) float32, counter-clockwise.
      zoom: (n,) float32 above 0; 2 shows things twice as large.
      shift: (n, 2) float32 in [-1, 1]: moved down and to the right by these shares of
        height and width. None: not moved.

    Returns:
      (n, height, width, 3) float32, grey levels in [0, 255].
    """
    n, height, width, _ = images.shape
    angle = jnp.deg2rad(degrees)
    # Beyond this all but the centre is black, and whole numbers would overflow.
    scale = jnp.minimum(2**_BITS / zoom, 2.0**28 / max(height, width))
    cosine, sine = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    dy, dx = (0, 0) if shift is None else 2 * shift.T * jnp.array([[height], [width]])
    numbers = (cosine, sine, cosine * dy + sine * dx, cosine * dx - sine * dy)
    # The same holds for cosines.
    whole = jax.lax.optimization_barrier(jnp.round(jnp.stack(numbers)))
    cos, sin, moved_down, moved_right = whole.astype(jnp.int32)[..., None, None]
    # Twice the distance from the centre, a whole number also where the side is even.
    y = 2 * jnp.arange(height)[:, None] - (height - 1)
    x = 2 * jnp.arange(width) - (width - 1)
    top, down = _place(cos * y + sin * x - moved_down, height)
    left, right = _place(cos * x - sin * y - moved_right, width)

    # A black border answers for all that lies beyond. With a fourth channel a pixel is
    # one 32-bit word, so that one read fetches all its channels.
    bordered = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 1)))
    words = jax.lax.bitcast_convert_type(bordered, jnp.uint32).reshape(n, -1)
    stride = width + 2
    corner = (top * stride + left).reshape(n, -1)

    def pixels(offset: int) -> jax.Array:
        found = jnp.take_along_axis(
            words, corner + offset, axis=1, mode="promise_in_bounds"
        )
        channels = jax.lax.bitcast_convert_type(found, jnp.uint8)[..., :3]
        return channels.reshape(n, height, width, 3).astype(jnp.float32)

    above = pixels(0) * (1 - right) + pixels(1) * right
    below = pixels(stride) * (1 - right) + pixels(stride + 1) * right
    return above * (1 - down) + below * down


def blur(images: jax.Array, sigma: jax.Array, *, most: float) -> jax.Array:
    """Returns images with each cell blurred by a Gaussian.

    The mean is over the pixels of the cell alone: mixing black in would leave a dark
    rim, as wide as the blur.

    Args:
      images: (n, height, width, 3) float32.
      sigma: (n,) float32, standard deviations in pixels, in [0, `most`].
      most: decides how far the kernel reaches.

    Returns:
      The same shape; black where no cell was.
    """
    reach = math.ceil(3 * most)
    steps = jnp.arange(-reach, reach + 1)
    # Not 0 / 0 at the centre where nothing is blurred; neighbours count 0 even so.
    weights = jnp.exp(-0.5 * (steps / jnp.maximum(sigma, 1e-2)[:, None]) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    cell = is_cell(images)
    # Sums of shifted pictures, which are faster here than products with a matrix.
    mixed = jnp.concatenate((images, cell.astype(jnp.float32)), axis=-1)
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (reach, reach)
        wide, length = jnp.pad(mixed, padding), mixed.shape[axis]
        mixed = _sum(
            weights[:, i, None, None, None]
            * jax.lax.slice_in_dim(wide, i, i + length, axis=axis)
            for i in range(2 * reach + 1)
        )
    share = jnp.where(cell, mixed[..., 3:], 1)
    return jnp.where(cell, mixed[..., :3] / share, 0)


def scale_stains(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Returns cells that took up more or less haematoxylin and eosin.

    Args:
      images: (n, height, width, 3) float32, grey levels in [0, 255].
      factors: (n, 2) float32, of the optical density of haematoxylin and of eosin; what
        is neither stays as it is.

    Returns:
      The same shape, in [0, 255]; black where no cell is.
    """
    factors = jnp.pad(factors, ((0, 0), (0, 1)), constant_values=1)
    # One matrix per image; written as sums, which no device computes with fewer bits.
    parts = _UNMIXING[:, :, None] * _STAINS
    matrix = (parts * factors[:, None, :, None]).sum(axis=2)
    density = optical_density(images)
    mixed = _sum(density[..., i : i + 1] * matrix[:, None, None, i] for i in range(3))
    return jnp.where(is_cell(images), grey_levels(mixed), 0)


def cover(images: jax.Array, *, side: jax.Array, place: jax.Array) -> jax.Array:
    """Returns images with a black square on each.

    Args:
      images: (n, height, width, 3).
      side: (n,) float32 of the square, as a share of the image's shorter side.
      place: (n, 2) float32 in [0, 1): from the top to the bottom, and from left to
        right, of the places where the whole square lies within the image.
    """
    shape = jnp.array(images.shape[1:3])
    side = jnp.round(side * shape.min()).astype(jnp.int32)[:, None]
    start = jnp.floor(place * (shape - side + 1)).astype(jnp.int32)
    rows, columns = (
        (jnp.arange(length) >= start[:, i, None])
        & (jnp.arange(length) < start[:, i, None] + side)
        for i, length in enumerate(images.shape[1:3])
    )
    covered = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(covered, 0, images)


def _place(doubled: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """Returns where to read in one direction of a picture with a border of one pixel.

    Args:
      doubled: int32, twice the distance from the centre, in parts of 2**-`_BITS`.
      side: of the picture without its border, pixels.

    Returns:
      The pixel before the place, int32, 0 to `side`; and how far beyond it the place
      lies, in [0, 1], float32 with an axis for channels.
    """
    unit = 2 << _BITS
    place = jnp.clip(doubled + ((side + 1) << _BITS), 0, (side + 1) * unit)
    pixel = jnp.minimum(place >> (_BITS + 1), side)
    return pixel, ((place - pixel * unit) / unit)[..., None].astype(jnp.float32)


def _where(bit: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Returns for each image one of two."""
    return jnp.where((bit == 1)[:, None, None, None], yes, no)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)
