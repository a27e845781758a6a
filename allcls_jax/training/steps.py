"""The jitted training and evaluation steps: pure functions of state and batch."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from allcls_jax.data.cells import ALL
from allcls_jax.models.preprocessing import Preprocessing
from allcls_jax.models.vgg import VGG, Params, split_at_features
from allcls_jax.training.optim import Mask
from allcls_jax.training.sharding import Shardings
from allcls_jax.training.state import Sums, TrainState, zero_sums

DeviceBatch = dict[str, jax.Array]  # `pipeline.Batch` on the devices


@dataclasses.dataclass(frozen=True)
class Steps:
    """Compiled steps of one model.

    Attributes:
      train: (state, batch) → the state after one update, the old one being used up,
        and the batch's mean loss, () float32.
      eval: (params, batch) → sums over the batch, and of each of its images, padding
        included, P(ALL) (n,) float32 and row (n,) int32; the same on every process.
      features: (params, batch of images) → the frozen backbone's output (n, m) float32
        and row (n,) int32, padding included; the same on every process.
      start_epoch: state → the state with its sums set to zero.
    """

    train: Callable[[TrainState, DeviceBatch], tuple[TrainState, jax.Array]]
    eval: Callable[[Params, DeviceBatch], tuple[Sums, jax.Array, jax.Array]]
    features: Callable[[Params, DeviceBatch], tuple[jax.Array, jax.Array]]
    start_epoch: Callable[[TrainState], TrainState]


def make_steps(
    model: VGG,
    preprocessing: Preprocessing,
    optimizer: optax.GradientTransformation,
    mask: Mask,
    shardings: Shardings,
    *,
    class_weights: tuple[float, float],
    seed: int,
) -> Steps:
    """Returns the steps, to be compiled at their first call.

    Args:
      model: gives logits of (HEM, ALL). A batch has either images, or the features
        of a frozen backbone, which its head goes on from.
      preprocessing: what its weights expect.
      optimizer: from `optim.make_optimizer`.
      mask: which parameters are trained.
      shardings: where state and batches lie.
      class_weights: of a HEM and of an ALL image in the training loss.
      seed: of dropout.
    """
    weights = jnp.asarray(class_weights, jnp.float32)
    backbone, head = split_at_features(model)

    def loss_sums(
        params: Params, batch: DeviceBatch, per_class: jax.Array, **apply: Any
    ) -> tuple[jax.Array, tuple[Sums, jax.Array]]:
        if "features" in batch:
            logits, _ = head.apply({"params": params}, batch["features"], **apply)
        else:
            images = preprocessing(batch["image"])
            logits, _ = model.apply({"params": params}, images, **apply)
        label, valid = batch["label"], batch["mask"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        sums = Sums(
            loss=jnp.sum(losses * per_class[label] * valid),
            correct=jnp.sum((jnp.argmax(logits, -1) == label) * valid),
            count=jnp.sum(valid),
        )
        probability = jax.nn.softmax(logits)[:, ALL]
        # An epoch's last batch may be short, and is a mean over what it has, as in
        # Keras; weights do not enter the divisor.
        return sums.loss / jnp.maximum(sums.count, 1), (sums, probability)

    def train_step(
        state: TrainState, batch: DeviceBatch
    ) -> tuple[TrainState, jax.Array]:
        def loss(params: Params) -> tuple[jax.Array, tuple[Sums, jax.Array]]:
            # Frozen gradients are zeros that cost nothing, even under a norm of all.
            params = jax.tree.map(
                lambda p, moves: p if moves else jax.lax.stop_gradient(p), params, mask
            )
            key = random_stream("dropout", seed, state.step)
            return loss_sums(params, batch, weights, train=True, rngs={"dropout": key})

        grad = jax.value_and_grad(loss, has_aux=True)
        (mean, (sums, _)), gradients = grad(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(
            # Adding a zero would already turn -0.0 into 0.0.
            lambda p, update, moves: p + update if moves else p,
            state.params,
            updates,
            mask,
        )
        new = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            sums=state.sums + sums,
        )
        return new, mean

    def eval_step(
        params: Params, batch: DeviceBatch
    ) -> tuple[Sums, jax.Array, jax.Array]:
        _, (sums, probability) = loss_sums(params, batch, jnp.ones(2))
        return sums, probability, batch["row"]

    def features(params: Params, batch: DeviceBatch) -> tuple[jax.Array, jax.Array]:
        values, _ = backbone.apply({"params": params}, preprocessing(batch["image"]))
        return values, batch["row"]

    def start_epoch(state: TrainState) -> TrainState:
        return state.replace(sums=zero_sums())

    one, split = shardings.replicated, shardings.batch
    return Steps(
        train=jax.jit(
            train_step, in_shardings=(one, split), out_shardings=one, donate_argnums=0
        ),
        eval=jax.jit(eval_step, in_shardings=(one, split), out_shardings=one),
        features=jax.jit(features, in_shardings=(one, split), out_shardings=one),
        start_epoch=jax.jit(
            start_epoch, in_shardings=(one,), out_shardings=one, donate_argnums=0
        ),
    )


def random_stream(name: str, seed: int, step: jax.Array | int = 0) -> jax.Array:
    """Returns the random key of a named use at a step; no key is ever stored."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)
