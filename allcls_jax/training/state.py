"""The state of training: what a checkpoint holds and a step turns into the next.

The state of many heads that are trained together has one axis more in front of all its
arrays, that of the heads.
"""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from allcls_jax.models.vgg import Params
from allcls_jax.training.optim import Mask, merge, trainable


class Sums(struct.PyTreeNode):
    """Sums over images, float32 scalars; divide by `count` for means.

    Sums merge exactly over batches and devices, padding included; means do not.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    def __add__(self, other: "Sums") -> "Sums":
        return jax.tree.map(jnp.add, self, other)


class Best(struct.PyTreeNode):
    """What the epoch of lowest validation loss has left.

    Attributes:
      params: the trainable ones, float32.
      loss: () float32, mean validation loss in nats; infinite before the first epoch.
      step: () int32, the number of steps done by its end.
    """

    params: Params
    loss: jax.Array
    step: jax.Array


class TrainState(struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: () int32, the number of steps done, which is also that of batches used.
      params: float32.
      opt_state: of the trainable parameters only.
      average: the running mean of the trainable parameters, which is what is validated
        and kept; None where that is the parameters themselves.
      sums: over the training images of the epoch under way, so that a run that stops
        within an epoch goes on with nothing lost.
      best: of the epochs that are finished.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    average: Params | None
    sums: Sums
    best: Best

    def used(self) -> Params:
        """Returns all parameters, as they are validated."""
        return self.params if self.average is None else merge(self.params, self.average)


def zero_sums() -> Sums:
    """Returns the sums over no image."""
    return Sums(loss=jnp.zeros(()), correct=jnp.zeros(()), count=jnp.zeros(()))


def create(
    params: Params,
    optimizer: optax.GradientTransformation,
    mask: Mask,
    *,
    averaged: bool = False,
) -> TrainState:
    """Returns the state before the first step, around parameters already merged.

    Args:
      params: of the whole network.
      optimizer: from `optim.make_optimizer`.
      mask: which parameters are trained.
      averaged: whether a running mean of them is kept.
    """
    moving = trainable(params, mask)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, moving) if averaged else None,
        sums=zero_sums(),
        best=Best(
            params=jax.tree.map(jnp.copy, moving),
            loss=jnp.full((), jnp.inf, jnp.float32),
            step=jnp.zeros((), jnp.int32),
        ),
    )


def conclude(
    state: TrainState, validation: Sums, mask: Mask
) -> tuple[TrainState, tuple[Sums, Sums]]:
    """Ends an epoch: the best is noted, the sums begin anew.

    Args:
      state: behind the epoch's last step.
      validation: over all validation images, under `state.used()`.
      mask: which parameters are trained.

    Returns:
      The state before the next epoch, and the sums of training and validation.
    """
    loss = validation.loss / validation.count
    better = loss < state.best.loss
    now = Best(params=trainable(state.used(), mask), loss=loss, step=state.step)
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, state.best)
    new = state.replace(sums=zero_sums(), best=best)
    return new, (state.sums, validation)
