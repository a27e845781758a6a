"""The state of training: what a checkpoint holds and a step turns into the next."""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from allcls_jax.models.vgg import Params


class Sums(struct.PyTreeNode):
    """Sums over images, float32 scalars; divide by `count` for means.

    Sums merge exactly over batches and devices, padding included; means do not.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    def __add__(self, other: "Sums") -> "Sums":
        return jax.tree.map(jnp.add, self, other)


class TrainState(struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: () int32, the number of steps done, which is also that of batches used.
      params: float32.
      opt_state: of the trainable parameters only.
      sums: over the training images of the epoch under way, so that a run that stops
        within an epoch goes on with nothing lost.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    sums: Sums


def zero_sums() -> Sums:
    """Returns the sums over no image."""
    return Sums(loss=jnp.zeros(()), correct=jnp.zeros(()), count=jnp.zeros(()))


def create(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step, around parameters already merged."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        sums=zero_sums(),
    )
