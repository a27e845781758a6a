"""Mixup: training on weighted means of two images and of their labels.

Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), equation 1.
Images are mixed where learning begins, behind whatever is frozen: as the network's
input where all of it learns, else as the frozen part's output, which is what Verma et
al., "Manifold Mixup" (2019), do at a layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mixing(NamedTuple):
    """How the images of a batch are mixed.

    Attributes:
      partner: (n,) int32, which image of the batch each is mixed with; every image is
        the partner of one, and padding of itself.
      share: () float32 in [0, 1], of the image itself; the partner has the rest.
    """

    partner: jax.Array
    share: jax.Array


def draw(key: jax.Array, valid: jax.Array, alpha: float) -> Mixing | None:
    """Returns how to mix a batch, drawn at random.

    Args:
      key: random key.
      valid: (n,) float32, 1 for an image and 0 for padding, wherever that stands.
      alpha: as of `TrainConfig.mixup`; with 0 nothing is mixed, and this gives None.
    """
    if not alpha:
        return None
    order, share = jax.random.split(key)
    # The images first, shuffled; the k-th of them in the batch is mixed with the k-th.
    there = valid > 0
    turn = jnp.where(there, jax.random.uniform(order, valid.shape), jnp.inf)
    shuffled = jnp.argsort(turn)[jnp.cumsum(there) - 1]
    partner = jnp.where(there, shuffled, jnp.arange(len(valid)))
    return Mixing(
        partner.astype(jnp.int32), jax.random.beta(share, alpha, alpha, (), jnp.float32)
    )


def mix(values: jax.Array, mixing: Mixing | None) -> jax.Array:
    """Returns each value's weighted mean with that of its partner.

    Args:
      values: (n, …) floats, of a batch.
      mixing: of that batch; None leaves them as they are.
    """
    if mixing is None:
        return values
    share = mixing.share.astype(values.dtype)
    return share * values + (1 - share) * values[mixing.partner]
