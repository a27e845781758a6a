"""A VGG block in float32 on a CPU, with fewer multiplications; and max pooling.

Winograd's minimal filtering makes 4x4 outputs of a 3x3 convolution from 36 products per
pair of channels instead of 144. The three matrices are those of Lavin & Gray, "Fast
Algorithms for Convolutional Neural Networks" (2015), section 4.3. The plain twin of
`winograd` is the loop of `vgg.VGG`; their outputs agree to 1e-4 of their size.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)

# To transform a kernel costs what about 80 tiles of 4x4 outputs save. Where channels
# are few, transforming the images costs more than the products save.
_FEWEST_TILES = 96
_FEWEST_CHANNELS = 64

# So many at a time stay in the cache from one transform to the next.
_TILES_AT_A_TIME = 256


def max_pool(images: jax.Array) -> jax.Array:
    """Returns the maxima of 2x2 values, stride 2; an odd last row or column is left.

    Maxima of slices, since XLA's window reduction is slow on a CPU, and so is its
    gradient everywhere.

    Args:
      images: (n, height, width, channels).

    Returns:
      (n, height // 2, width // 2, channels).
    """
    height, width = (side // 2 * 2 for side in images.shape[1:3])
    corners = [images[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    return functools.reduce(jnp.maximum, corners)


def winograd_runs(dtype: Any) -> bool:
    """Whether this process computes in float32 on one CPU.

    Several devices share a batch, and the loop over its parts would gather it again.
    """
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    return one_cpu and jnp.dtype(dtype) == jnp.float32


def winograd(
    images: jax.Array,
    convolutions: Sequence[Mapping[str, jax.Array]],
    *,
    at_once: bool = False,
) -> jax.Array:
    """Returns what a block of 3x3 convolutions, each with ReLU, and max pooling gives.

    Where too small to gain by it, layers are computed plainly.

    Args:
      images: (n, height, width, channels) float32.
      convolutions: `kernel` (3, 3, channels, channels of the next) and `bias` of each.
      at_once: whether all images go through a layer before the next one, which suits a
        gradient; otherwise few at a time go through all layers, which suits the cache.

    Returns:
      (n, height // 2, width // 2, channels of the last) float32.
    """
    n, height, width, _ = images.shape
    tiles = -(-height // 4) * -(-width // 4)
    kernels = [
        _transform(kernel)
        if n * tiles >= _FEWEST_TILES and min(kernel.shape[2:]) >= _FEWEST_CHANNELS
        else kernel
        for kernel in (convolution["kernel"] for convolution in convolutions)
    ]

    def run(x: jax.Array) -> jax.Array:
        for kernel, convolution in zip(kernels, convolutions, strict=True):
            products = _convolve_by_tiles if kernel.ndim == 3 else _convolve
            x = jax.nn.relu(products(x, kernel) + convolution["bias"])
        return max_pool(x)

    if at_once or all(kernel.ndim == 4 for kernel in kernels):
        return run(images)
    return _in_parts(run, images, max(1, _TILES_AT_A_TIME // tiles))


def _convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _transform(kernel: jax.Array) -> jax.Array:
    """(3, 3, channels, channels) → (36, channels, channels)."""
    rows = _weigh(_KERNEL, list(kernel), 0)
    both = _weigh(_KERNEL, [rows[:, j] for j in range(3)], 1)
    return both.reshape(36, *kernel.shape[2:])


def _convolve_by_tiles(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the same as `_convolve`, of a transformed kernel."""
    n, height, width, channels = images.shape
    rows, columns = -(-height // 4), -(-width // 4)
    rest = (4 * rows - height, 4 * columns - width)
    x = jnp.pad(images, ((0, 0), (1, 1 + rest[0]), (1, 1 + rest[1]), (0, 0)))
    x = _weigh(_INPUT, [x[:, i : i + 4 * rows - 3 : 4] for i in range(6)], 0)
    x = _weigh(_INPUT, [x[:, :, :, j : j + 4 * columns - 3 : 4] for j in range(6)], 1)
    x = jnp.einsum("tnc,tck->tnk", x.reshape(36, -1, channels), kernel)
    x = x.reshape(6, 6, n, rows, columns, -1)
    x = _weigh(_OUTPUT, list(x), 3)
    x = _weigh(_OUTPUT, list(x), 4)
    return x.reshape(n, 4 * rows, 4 * columns, -1)[:, :height, :width]


def _weigh(
    weights: Sequence[Sequence[float]], arrays: Sequence[jax.Array], axis: int
) -> jax.Array:
    """Stacks the weighted sums of arrays, one for each row of weights."""
    sums = [
        # XLA may not drop a product with zero, for the other could be infinite.
        functools.reduce(
            operator.add, [w * a for w, a in zip(row, arrays, strict=True) if w]
        )
        for row in weights
    ]
    return jnp.stack(sums, axis)


def _in_parts(
    run: Callable[[jax.Array], jax.Array], images: jax.Array, size: int
) -> jax.Array:
    """Runs so many images at a time; the last part may be smaller."""
    if len(images) <= size:
        return run(images)
    whole = len(images) // size * size
    parts = images[:whole].reshape(-1, size, *images.shape[1:])
    done = jax.lax.map(run, parts)
    done = done.reshape(whole, *done.shape[2:])
    if whole == len(images):
        return done
    return jnp.concatenate([done, run(images[whole:])])
