"""The views of an image whose logits are averaged: flips, turns, and other angles.

An image of a cell has no upright, so that each of its views is as good a picture of the
cell; their mean logits waver less than those of one. It is logits that are averaged, so
that temperature, thresholds and log odds keep their meaning.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.data import augmentation
from allcls_jax.errors import InputError

FLIPS_AND_TURNS = 8  # of a square: those that move pixels and change none


def check(views: int) -> int:
    """Returns a number of views; raises ValueError unless it is 1 or 8 k."""
    if views != 1 and (views < 1 or views % FLIPS_AND_TURNS):
        raise ValueError(f"views = {views}: must be 1, or a multiple of 8")
    return views


def refuse_other_angles(views: int, name: str) -> None:
    """Raises InputError for a format that has no turns by less than a quarter."""
    if views > FLIPS_AND_TURNS:
        raise InputError(
            f"--format {name}: has no operator for the {views} views of this model, "
            f"only for {FLIPS_AND_TURNS}; give --format stablehlo"
        )


def of_images(images: jax.Array | np.ndarray, views: int) -> Iterator[jax.Array]:
    """Yields all images in each view, the first being themselves.

    Args:
      images: (n, s, s, 3) grey levels; uint8 for more than 8 views.
      views: 1; 8, the flips and quarter turns, numbered as for `augmentation.turn`; 8
        k, those of the images turned by j 90 / k degrees, j from 0 to k - 1.

    Yields:
      (n, s, s, 3), of the same type, float32 where turned by other angles.
    """
    images = jnp.asarray(images)
    angles = max(1, check(views) // FLIPS_AND_TURNS)
    for j in range(angles):
        turned = _turned(images, j * 90 / angles) if j else images
        for view in range(min(views, FLIPS_AND_TURNS)):
            mirrored, quarters = divmod(view, 4)
            source = turned[:, :, ::-1] if mirrored else turned
            yield jnp.rot90(source, quarters, (1, 2))


def mean_logits(
    network: Callable[[jax.Array], jax.Array],
    images: jax.Array | np.ndarray,
    views: int,
) -> jax.Array:
    """Returns the mean of what a network gives for each view of images, (n, 2).

    Args:
      network: (n, s, s, 3) grey levels → (n, 2) logits.
      images: as of `of_images`.
      views: likewise; with 1 the network is called, and nothing else is computed.
    """
    if check(views) == 1:
        return network(jnp.asarray(images))
    # Traced once, and unrolled: in a loop of XLA's, convolutions on a CPU take several
    # times as long.
    once = jax.jit(network)
    total: jax.Array | None = None
    for view in of_images(images, views):
        if total is not None:
            # One view after the other, so that they take no more memory than one.
            view, total = jax.lax.optimization_barrier((view, total))
            total = total + once(view)
        else:
            total = once(view)
    assert total is not None, "there is a first view"
    return total / views


def _turned(images: jax.Array, degrees: float) -> jax.Array:
    """Returns images turned counter-clockwise: (n, s, s, 3) uint8 → float32."""

    def turn(images: jax.Array) -> jax.Array:
        each = jnp.ones(images.shape[:1])
        return augmentation.rotate_and_zoom(images, degrees=degrees * each, zoom=each)

    if isinstance(images.shape[0], int):
        return turn(images)
    # In an exported function of any n, XLA cannot see four bytes as one word.
    return jax.lax.map(lambda image: turn(image[None])[0], images)
