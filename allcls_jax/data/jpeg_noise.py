"""The noise that JPEG's quantisation leaves in pictures, on the device.

As in baseline JPEG without subsampling: blocks of 8 x 8 pixels of luminance and two
chrominances (JFIF's YCbCr), their cosine transforms rounded to whole steps. Only this
rounding is done; JPEG's others, to whole grey levels, are not. Colours, transform and
scale being linear, one matrix takes the 192 numbers of a block to its coefficients.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

# Steps of quality 50, by vertical and horizontal frequency: ISO/IEC 10918-1, Annex K,
# tables K.1 and K.2.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMINANCE = np.full((8, 8), 99)
CHROMINANCE[:4, :4] = [
    [17, 18, 24, 47],
    [18, 21, 26, 66],
    [24, 26, 56, 99],
    [47, 66, 99, 99],
]

_SIDE = 8  # of a block, pixels
_BLOCK = (_SIDE, _SIDE, 3)
_FROM_RGB = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168736, -0.331264, 0.5],
        [0.5, -0.418688, -0.081312],
    ]
)
_MIDDLE = 128  # the grey level that counts as 0
# Steps as fine change no grey level by 0.1; of finer ones float32 loses the count.
_FINEST = 1e-4


def quantise(images: jax.Array, coarseness: jax.Array) -> jax.Array:
    """Returns pictures as they come out of JPEG.

    Args:
      images: (n, height, width, 3) float32, grey levels in [0, 255]. Where a side is
        no multiple of 8 its last pixels are repeated, as encoders do.
      coarseness: (n,) float32, steps of each image in those of quality 50, from 0 on.

    Returns:
      The same shape, float32 in [0, 255].
    """
    n, height, width, channels = images.shape
    down, across = -(-height // _SIDE), -(-width // _SIDE)
    padding = (
        (0, 0),
        (0, down * _SIDE - height),
        (0, across * _SIDE - width),
        (0, 0),
    )
    whole = jnp.pad(images, padding, mode="edge")
    blocks = whole.reshape(n, down, _SIDE, across, _SIDE, channels).swapaxes(2, 3)
    values = blocks.reshape(n, -1, math.prod(_BLOCK)) - _MIDDLE
    steps = jnp.maximum(coarseness, _FINEST)[:, None, None] * _STEPS
    coefficients = steps * jnp.round(_product(values, _FORWARD) / steps)
    found = jnp.clip(_product(coefficients, _BACK) + _MIDDLE, 0, 255)
    blocks = found.reshape(n, down, across, *_BLOCK).swapaxes(2, 3)
    return blocks.reshape(whole.shape)[:, :height, :width]


def _product(values: jax.Array, matrix: np.ndarray) -> jax.Array:
    # Some devices would otherwise multiply with fewer bits than grey levels need.
    return jnp.matmul(values, matrix, precision=jax.lax.Precision.HIGHEST)


def _cosines() -> np.ndarray:
    """Returns the orthonormal cosine transform of 8 values, float64."""
    frequency, place = np.mgrid[:_SIDE, :_SIDE]
    waves = np.cos((2 * place + 1) * frequency * np.pi / (2 * _SIDE))
    return waves * np.sqrt(np.where(frequency == 0, 1, 2) / _SIDE)


_STEPS = np.stack((LUMINANCE, CHROMINANCE, CHROMINANCE), -1).ravel().astype(np.float32)
_WHOLE = np.kron(np.kron(_cosines(), _cosines()), _FROM_RGB)
_FORWARD = _WHOLE.T.astype(np.float32)
_BACK = np.linalg.inv(_WHOLE).T.astype(np.float32)
