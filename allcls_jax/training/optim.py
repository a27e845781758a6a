"""Optimizers that move the trainable parameters and nothing else.

A frozen parameter keeps its bits and has no optimizer state, whatever weight decay and
clipping do to the others.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import optax

from allcls_jax.config import OptimConfig, OptimizerName
from allcls_jax.errors import InputError

_Leaf = TypeVar("_Leaf")

Mask = dict[str, dict[str, bool]]  # shaped like the parameters


def trainable_mask(
    names: Mapping[str, Mapping[str, object]], rules: Sequence[tuple[str, bool]]
) -> Mask:
    """Returns which parameters are trained.

    Args:
      names: layer name → parameter name → anything, shaped like the parameters.
      rules: (regular expression, trainable); the first that matches the whole name,
        such as `block5_conv4/kernel`, decides.

    Raises:
      InputError: if a parameter is matched by no rule, a rule by no parameter, or all
        or none of the parameters are trainable.
    """
    used: set[str] = set()
    unmatched: list[str] = []

    def decide(name: str) -> bool:
        for pattern, trainable in rules:
            if re.fullmatch(pattern, name):
                used.add(pattern)
                return trainable
        unmatched.append(name)
        return False

    mask = {
        layer: {name: decide(f"{layer}/{name}") for name in arrays}
        for layer, arrays in names.items()
    }
    decisions = set(jax.tree.leaves(mask))
    known = [f"{layer}/{name}" for layer, arrays in names.items() for name in arrays]
    problem = None
    if unmatched:
        problem = f"no rule matches {', '.join(unmatched)}"
    elif unused := [pattern for pattern, _ in rules if pattern not in used]:
        problem = f"{', '.join(map(repr, unused))} decides over no parameter"
    elif decisions == {True}:
        problem = "all parameters are trainable, so that nothing is transferred"
    elif decisions == {False}:
        problem = "no parameter is trainable, so that nothing can be learnt"
    if problem:
        raise InputError(
            f"optim.trainable = {tuple(map(tuple, rules))}: {problem}; the parameters "
            f"are {', '.join(known)}"
        )
    return mask


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


def make_optimizer(
    config: OptimConfig,
    mask: Mask,
    *,
    learning_rate: float | jax.Array | None = None,
    weight_decay: float | jax.Array | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer of the configuration, masked.

    Its state has no array for a frozen parameter, its updates of frozen parameters are
    zero, and the clipping norm is taken over trainable gradients only.

    Args:
      config: the `optim` section, validated.
      mask: from `trainable_mask`.
      learning_rate: in place of the configuration's; may be traced.
      weight_decay: the same.
    """
    rate = config.learning_rate if learning_rate is None else learning_rate
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
    labels = jax.tree.map(lambda trainable: "moving" if trainable else "frozen", mask)
    return optax.partition({"moving": moving, "frozen": optax.set_to_zero()}, labels)


def _kernels(params: optax.Params) -> optax.Params:
    """Weight decay is for kernels, not for biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )
