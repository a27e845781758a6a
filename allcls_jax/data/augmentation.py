"""Random changes of training images, on the device, inside the training step.

Pure functions of images and a key. A cell's background is exactly black and stays so:
what is turned in from beyond the picture is black, and colours are only multiplied.
The eight flips and quarter turns move pixels and change none; their numbers are drawn
on the host, since features that were computed once per view must follow the same draws.
"""

import jax
import jax.numpy as jnp

from allcls_jax.config import AugmentConfig

# Places are computed in whole numbers, 2**14 to half a pixel: a compiler may compute a
# float twice and round it in two ways, and then read one pixel but weigh another.
_BITS = 14


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
    """Returns images that are rotated, zoomed and coloured by chance.

    Each image draws numbers of its own, uniformly: an angle from ± `rotation` degrees,
    a zoom from 1 ± `scale`, a brightness from 1 ± `colour`, and for each of its
    channels a gain from 1 ± `colour` / 2. A strength of 0 draws and computes nothing.
    `config.dihedral` is not looked at: see `turn`.

    Args:
      images: (n, height, width, 3) uint8.
      key: of this step; the same key gives the same pictures.
      config: the strengths.

    Returns:
      (n, height, width, 3) float32, grey levels in [0, 255], not rounded.
    """
    n = len(images)
    of_angle, of_zoom, of_brightness, of_gain = jax.random.split(key, 4)
    result = images.astype(jnp.float32)
    if config.rotation or config.scale:
        degrees = config.rotation * _around_zero(of_angle, (n,))
        zoom = 1 + config.scale * _around_zero(of_zoom, (n,))
        result = rotate_and_zoom(images, degrees=degrees, zoom=zoom)
    if config.colour:
        brightness = 1 + config.colour * _around_zero(of_brightness, (n, 1))
        gain = 1 + config.colour / 2 * _around_zero(of_gain, (n, 3))
        factors = (brightness * gain)[:, None, None, :]
        result = jnp.minimum(result * factors, 255)
    return result


def rotate_and_zoom(
    images: jax.Array, *, degrees: jax.Array, zoom: jax.Array
) -> jax.Array:
    """Returns images turned and magnified about their centre, resampled once.

    Each pixel is interpolated bilinearly between the four around the place that it
    comes from; beyond the picture all is black.

    Args:
      images: (n, height, width, 3) uint8.
      degrees: (n,) float32, counter-clockwise.
      zoom: (n,) float32 above 0; 2 shows things twice as large.

    Returns:
      (n, height, width, 3) float32, grey levels in [0, 255].
    """
    n, height, width, _ = images.shape
    angle = jnp.deg2rad(degrees)
    # Beyond this all but the centre is black, and whole numbers would overflow.
    scale = jnp.minimum(2**_BITS / zoom, 2.0**29 / max(height, width))
    cos, sin = (
        jnp.round(f(angle) * scale).astype(jnp.int32)[:, None, None]
        for f in (jnp.cos, jnp.sin)
    )
    # Twice the distance from the centre, a whole number also where the side is even.
    y = 2 * jnp.arange(height)[:, None] - (height - 1)
    x = 2 * jnp.arange(width) - (width - 1)
    top, down = _place(cos * y + sin * x, height)
    left, right = _place(cos * x - sin * y, width)

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


def _around_zero(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns float32 numbers drawn uniformly from [-1, 1)."""
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
