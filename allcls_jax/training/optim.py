"""Optimizers that move the trainable parameters and nothing else.

A frozen parameter keeps its bits and has no optimizer state, whatever weight decay and
clipping do to the others.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from allcls_jax.config import OptimConfig, OptimizerName, Schedule
from allcls_jax.errors import InputError

_Leaf = TypeVar("_Leaf")

Mask = dict[str, dict[str, bool]]  # shaped like the parameters
Shares = Mapping[str, Mapping[str, float]]  # of the learning rate; 0: frozen


def learning_rate_shares(
    names: Mapping[str, Mapping[str, object]],
    rules: Sequence[tuple[str, bool | float]],
) -> dict[str, dict[str, float]]:
    """Returns at which share of the learning rate each parameter is trained.

    Args:
      names: layer name → parameter name → anything, shaped like the parameters.
      rules: (regular expression, share, or whether trainable); the first that matches
        the whole name, such as `block5_conv4/kernel`, decides.

    Raises:
      InputError: if a parameter is matched by no rule, a rule by no parameter, or none
        of the parameters is trainable.
    """
    used: set[str] = set()
    unmatched: list[str] = []

    def decide(name: str) -> float:
        for pattern, share in rules:
            if re.fullmatch(pattern, name):
                used.add(pattern)
                return float(share)
        unmatched.append(name)
        return 0.0

    shares = {
        layer: {name: decide(f"{layer}/{name}") for name in arrays}
        for layer, arrays in names.items()
    }
    known = [f"{layer}/{name}" for layer, arrays in names.items() for name in arrays]
    problem = None
    if unmatched:
        problem = f"no rule matches {', '.join(unmatched)}"
    elif unused := [pattern for pattern, _ in rules if pattern not in used]:
        problem = f"{', '.join(map(repr, unused))} decides over no parameter"
    elif not any(jax.tree.leaves(shares)):
        problem = "no parameter is trainable, so that nothing can be learnt"
    elif any(
        not share
        for layer, leaves in shares.items()
        if layer.startswith("standardise_")
        for share in leaves.values()
    ):
        problem = (
            "standardise_1 has no pretrained values, and cannot stay as it is: give it "
            "a share of the learning rate"
        )
    if problem:
        raise InputError(
            f"optim.trainable = {tuple(map(tuple, rules))}: {problem}; the parameters "
            f"are {', '.join(known)}"
        )
    return shares


def trainable_mask(shares: Shares) -> Mask:
    """Returns which parameters are trained at all."""
    return {
        layer: {name: share > 0 for name, share in leaves.items()}
        for layer, leaves in shares.items()
    }


def trainable(
    params: Mapping[str, Mapping[str, _Leaf]], mask: Mask
) -> dict[str, dict[str, _Leaf]]:
    """Returns the parameters that are trained, without the layers that have none."""
    found = {
        layer: {name: leaf for name, leaf in leaves.items() if mask[layer][name]}
        for layer, leaves in params.items()
    }
    return {layer: leaves for layer, leaves in found.items() if leaves}


def merge(
    params: Mapping[str, Mapping[str, _Leaf]],
    trained: Mapping[str, Mapping[str, _Leaf]],
) -> dict[str, dict[str, _Leaf]]:
    """Returns the parameters with those that were trained in place of their own."""
    return {
        layer: {**leaves, **trained.get(layer, {})} for layer, leaves in params.items()
    }


def learning_rate(
    config: OptimConfig,
    step: jax.Array,
    *,
    highest: float | jax.Array,
    steps_per_epoch: jax.Array,
    total_steps: jax.Array,
) -> float | jax.Array:
    """Returns the learning rate of a step; the same wherever a run was stopped.

    Args:
      config: the `optim` section, validated.
      step: () int32, the number of steps before it.
      highest: at the end of the warm-up, in place of the configuration's.
      steps_per_epoch: () float32.
      total_steps: () float32, of all epochs.
    """
    warmup = config.warmup * steps_per_epoch
    rate = highest
    if config.schedule is Schedule.COSINE:
        done = jnp.clip((step - warmup) / (total_steps - warmup), 0, 1)
        rate = rate * (1 + jnp.cos(jnp.pi * done)) / 2
    if config.warmup:
        rate = rate * jnp.minimum(1, (step + 1) / warmup)
    return rate


def make_optimizer(
    config: OptimConfig,
    shares: Shares,
    *,
    rate: float | jax.Array | None = None,
    weight_decay: float | jax.Array | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer of the configuration, masked.

    Its state has no array for a frozen parameter, its updates of frozen parameters are
    zero, and the clipping norm is taken over trainable gradients only.

    Args:
      config: the `optim` section, validated.
      shares: from `learning_rate_shares`, or a mask.
      rate: of learning, in place of the configuration's; may be traced.
      weight_decay: the same.
    """
    rate = config.learning_rate if rate is None else rate
    decay = config.weight_decay if weight_decay is None else weight_decay
    match config.name:
        case OptimizerName.ADAM:
            moving = optax.adam(rate)
        case OptimizerName.ADAMW:
            # A callable would be asked for a number that is known now.
            moving = optax.adamw(rate, weight_decay=decay, mask=_kernels)  # pyright: ignore[reportArgumentType] # traced numbers are numbers
        case OptimizerName.SGD:
            moving = optax.chain(
                optax.add_decayed_weights(decay, mask=_kernels),
                optax.sgd(rate, momentum=0.9, nesterov=True),
            )
    if config.clip_norm is not None:
        moving = optax.chain(optax.clip_by_global_norm(config.clip_norm), moving)
    labels = jax.tree.map(lambda share: "moving" if share else "frozen", dict(shares))
    masked = optax.partition({"moving": moving, "frozen": optax.set_to_zero()}, labels)
    if all(share in (0, 1) for share in jax.tree.leaves(shares)):
        return masked

    def scaled(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda change, share: change * share, updates, shares)

    return optax.chain(masked, optax.stateless(scaled))


def _kernels(params: optax.Params) -> optax.Params:
    """Weight decay is for kernels, not for biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )
