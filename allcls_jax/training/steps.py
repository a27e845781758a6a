"""The jitted training and evaluation steps: pure functions of state and batch."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from allcls_jax.config import AugmentConfig, OptimConfig, TrainConfig
from allcls_jax.data import augmentation
from allcls_jax.data.cells import ALL
from allcls_jax.models import test_time_views
from allcls_jax.models.parts import split_at_learning
from allcls_jax.models.preprocessing import Preprocessing
from allcls_jax.models.vgg import VGG, Params
from allcls_jax.training import mixing
from allcls_jax.training.optim import (
    Shares,
    learning_rate,
    make_optimizer,
    trainable,
    trainable_mask,
)
from allcls_jax.training.sharding import Shardings
from allcls_jax.training.state import Sums, TrainState, conclude

DeviceBatch = dict[str, jax.Array]  # `pipeline.Batch` on the devices

Objective = Callable[[Params], tuple[jax.Array, Sums]]


# (params, batch, resident images or None) → sums over the batch, and of each of its
# images, padding included, P(ALL) (n,) float32 and row (n,) int32; the same on every
# process. A batch has its images, or their positions among the resident ones.
EvalStep = Callable[..., tuple[Sums, jax.Array, jax.Array]]


class RunSettings(NamedTuple):
    """What differs from run to run of one recipe, and needs no compiling.

    Attributes:
      seed: () uint32, of dropout and augmentation.
      class_weights: (2,) float32, of a HEM and of an ALL image in the training loss.
      steps_per_epoch: () float32.
      total_steps: () float32, of all epochs.
    """

    seed: jax.Array | np.uint32
    class_weights: jax.Array | np.ndarray
    steps_per_epoch: jax.Array | np.float32
    total_steps: jax.Array | np.float32


@dataclasses.dataclass(frozen=True)
class Steps:
    """Compiled steps of a whole network.

    Attributes:
      train: (state, batch, resident images or None, settings of the run) → the state
        after one update, the old one being used up, and the batch's mean loss, ()
        float32.
      eval: see `EvalStep`; of the images as they are.
      test: the same, of as many views of each as the configuration wants.
      conclude: (state, validation sums) → what `state.conclude` gives.
    """

    train: Callable[..., tuple[TrainState, jax.Array]]
    eval: EvalStep
    test: EvalStep
    conclude: Callable[[TrainState, Sums], tuple[TrainState, tuple[Sums, Sums]]]


def make_steps(
    model: VGG,
    preprocessing: Preprocessing,
    optim: OptimConfig,
    shares: Shares,
    shardings: Shardings,
    *,
    augment: AugmentConfig,
    train: TrainConfig,
    views: int = 1,
) -> Steps:
    """Returns the steps, to be compiled at their first call.

    Args:
      model: gives logits of (HEM, ALL).
      preprocessing: what its weights expect.
      optim: how parameters move.
      shares: of the learning rate, for each parameter; or a mask.
      shardings: where state and batches lie.
      augment: how training images vary; their views come with the batch.
      train: says how labels are smoothed and images mixed.
      views: as of `EvaluationConfig`.
    """
    mask = trainable_mask(shares)
    fixed, learning = split_at_learning(model, mask)

    def train_step(
        state: TrainState,
        batch: DeviceBatch,
        resident: jax.Array | None,
        settings: RunSettings,
    ) -> tuple[TrainState, jax.Array]:
        key = random_stream("augmentation", settings.seed, state.step)
        images = augmentation.augment(_images(batch, resident), key, augment)
        key = random_stream("mixup", settings.seed, state.step)
        mixed = mixing.draw(key, batch["mask"], train.mixup)

        def objective(params: Params) -> tuple[jax.Array, Sums]:
            key = random_stream("dropout", settings.seed, state.step)
            # What is frozen is run as in evaluation, the fastest way that there is.
            values, _ = fixed.apply({"params": params}, preprocessing(images))
            logits, _ = learning.apply(
                {"params": params},
                mixing.mix(values, mixed),
                train=True,
                rngs={"dropout": key},
            )
            return mean_loss(
                logits,
                batch["label"],
                batch["mask"],
                settings.class_weights,
                smoothing=train.label_smoothing,
                mixed=mixed,
            )

        pace = Pace(
            optim.learning_rate,
            optim.weight_decay,
            jnp.asarray(settings.steps_per_epoch),
            jnp.asarray(settings.total_steps),
        )
        return update(state, objective, optim, shares, pace)

    one, split = shardings.replicated, shardings.batch
    single = make_eval_step(model, preprocessing, shardings)
    several = make_eval_step(model, preprocessing, shardings, views)
    return Steps(
        train=jax.jit(
            train_step,
            in_shardings=(one, split, one, one),
            out_shardings=one,
            donate_argnums=0,
        ),
        eval=single,
        test=single if views == 1 else several,
        conclude=jax.jit(
            lambda state, validation: conclude(state, validation, mask),
            in_shardings=one,
            out_shardings=one,
            donate_argnums=0,
        ),
    )


def make_eval_step(
    model: VGG, preprocessing: Preprocessing, shardings: Shardings, views: int = 1
) -> EvalStep:
    """Returns the evaluation step, to be compiled at its first call.

    Args:
      model: gives logits of (HEM, ALL).
      preprocessing: what its weights expect.
      shardings: where parameters and batches lie.
      views: of an image, whose logits are averaged.
    """

    def eval_step(
        params: Params, batch: DeviceBatch, resident: jax.Array | None
    ) -> tuple[Sums, jax.Array, jax.Array]:
        def network(images: jax.Array) -> jax.Array:
            output: Any = model.apply({"params": params}, preprocessing(images))
            return output[0]

        images = _images(batch, resident)
        logits = test_time_views.mean_logits(network, images, views)
        _, sums = mean_loss(logits, batch["label"], batch["mask"], jnp.ones(2))
        return sums, jax.nn.softmax(logits)[:, ALL], batch["row"]

    one, split = shardings.replicated, shardings.batch
    return jax.jit(eval_step, in_shardings=(one, split, one), out_shardings=one)


def make_features_step(
    fixed: VGG, preprocessing: Preprocessing, shardings: Shardings, dtype: np.dtype
) -> Callable[[Params, DeviceBatch], jax.Array]:
    """Returns the compiled frozen part.

    Args:
      fixed: the layers that make features.
      preprocessing: what its weights expect.
      shardings: where parameters and batches lie.
      dtype: in which features are kept.

    Returns:
      (params, batch of images) → features (n, m), padding included; the same on every
      process.
    """

    def features(params: Params, batch: DeviceBatch) -> jax.Array:
        images = preprocessing(_images(batch, None))
        values, _ = fixed.apply({"params": params}, images)
        return jax.lax.collapse(values, 1).astype(dtype)

    one, split = shardings.replicated, shardings.batch
    return jax.jit(features, in_shardings=(one, split), out_shardings=one)


def mean_loss(
    logits: jax.Array,
    label: jax.Array,
    valid: jax.Array,
    per_class: jax.Array | np.ndarray,
    *,
    smoothing: float = 0.0,
    mixed: mixing.Mixing | None = None,
) -> tuple[jax.Array, Sums]:
    """Returns the cross-entropy of a batch.

    Args:
      logits: (n, 2) float32, of (HEM, ALL).
      label: (n,) int32.
      valid: (n,) float32, 1 for an image and 0 for padding.
      per_class: (2,) float32, weights of the classes.
      smoothing: share of the target that both classes have alike (Szegedy et al.,
        "Rethinking the Inception Architecture for Computer Vision", section 7).
      mixed: how the images were mixed: loss and correctness by the label of each and
        by that of its partner are mixed likewise.

    Returns:
      The mean over the images that there are, as in Keras: weights do not enter the
      divisor, and an epoch's last batch may be short; and the sums over them.
    """

    def by(label: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        if smoothing:
            even = -jnp.mean(jax.nn.log_softmax(logits), -1)
            losses = (1 - smoothing) * losses + smoothing * even
        correct = (jnp.argmax(logits, -1) == label).astype(jnp.float32)
        return losses * per_class[label], correct

    losses, correct = by(label)
    if mixed is not None:
        others = by(label[mixed.partner])
        losses, correct = (
            mixed.share * own + (1 - mixed.share) * other
            for own, other in zip((losses, correct), others, strict=True)
        )
    sums = Sums(
        loss=jnp.sum(losses * valid),
        correct=jnp.sum(correct * valid),
        count=jnp.sum(valid),
    )
    return sums.loss / jnp.maximum(sums.count, 1), sums


class Pace(NamedTuple):
    """How fast parameters move.

    Attributes:
      learning_rate: the highest, at the end of the warm-up.
      weight_decay: as of `OptimConfig`.
      steps_per_epoch: () float32.
      total_steps: () float32, of all epochs.
    """

    learning_rate: jax.Array | float
    weight_decay: jax.Array | float
    steps_per_epoch: jax.Array
    total_steps: jax.Array


def update(
    state: TrainState,
    objective: Objective,
    optim: OptimConfig,
    shares: Shares,
    pace: Pace,
) -> tuple[TrainState, jax.Array]:
    """Returns the state after one step down the gradient, and the batch's mean loss.

    Args:
      state: before the step.
      objective: parameters → mean loss of the batch, and its sums.
      optim: how parameters move.
      shares: of the learning rate; parameters without one keep their bits.
      pace: in place of the configuration's.
    """
    mask = trainable_mask(shares)
    rate = learning_rate(
        optim,
        state.step,
        highest=pace.learning_rate,
        steps_per_epoch=pace.steps_per_epoch,
        total_steps=pace.total_steps,
    )
    optimizer = make_optimizer(optim, shares, rate=rate, weight_decay=pace.weight_decay)

    def loss(params: Params) -> tuple[jax.Array, Sums]:
        # Frozen gradients are zeros that cost nothing, even under a norm of all.
        return objective(
            jax.tree.map(
                lambda p, moves: p if moves else jax.lax.stop_gradient(p), params, mask
            )
        )

    grad = jax.value_and_grad(loss, has_aux=True)
    (mean, sums), gradients = grad(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = jax.tree.map(
        # Adding a zero would already turn -0.0 into 0.0.
        lambda p, change, moves: p + change if moves else p,
        state.params,
        updates,
        mask,
    )
    average = state.average
    if average is not None:
        # Less at first, so that the mean of a few steps is one of these, and not of
        # where training began.
        old = jnp.minimum(optim.ema, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(
            lambda mean, p: old * mean + (1 - old) * p, average, trainable(params, mask)
        )
    new = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        average=average,
        sums=state.sums + sums,
    )
    return new, mean


def _images(batch: DeviceBatch, resident: jax.Array | None) -> jax.Array:
    """Returns the images of a batch, in the views that it asks for."""
    images = batch["image"] if resident is None else resident[batch["position"]]
    return augmentation.turn(images, batch["view"])


def random_stream(
    name: str, seed: int | jax.Array | np.uint32, step: jax.Array | int = 0
) -> jax.Array:
    """Returns the random key of a named use at a step; no key is ever stored."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)
