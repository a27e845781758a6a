"""Parts of a network, and the same network in other layers."""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.models.vgg import (
    VGG,
    BlockAverages,
    Conv,
    Dense,
    MaxPool,
    Params,
    Pooling,
    Standardise,
    layer_table,
)


def split_at_features(model: VGG) -> tuple[VGG, VGG]:
    """Returns the part of a network that makes features, and the part behind it.

    Both take the parameters of the whole network; the first gives `features` as its
    output, the second takes them as its input.
    """
    kinds = [isinstance(layer, Pooling) for layer in model.layers]
    return _cut(model, kinds.index(True) + 1)


def split_at_learning(
    model: VGG, mask: Mapping[str, Mapping[str, bool]]
) -> tuple[VGG, VGG]:
    """Returns the part of a network that training leaves as it is, and the rest.

    Both take the parameters of the whole network. The first ends in a pooling or
    flattening, the last one before a trained layer; where there is none it has no
    layers, and gives the images. Where the head takes from all blocks there is no part
    without the last of them.

    Args:
      model: the whole network.
      mask: layer name → parameter name → whether it is trained; at least one is.
    """
    moves = [any(mask.get(layer.name, {}).values()) for layer in model.layers]
    first = moves.index(True)
    takes_all = any(isinstance(layer, BlockAverages) for layer in model.layers)
    ends = Pooling if takes_all else MaxPool | Pooling
    cuts = [
        behind
        for behind, layer in enumerate(model.layers[:first], start=1)
        if isinstance(layer, ends)
    ]
    return _cut(model, max(cuts, default=0))


def _cut(model: VGG, behind: int) -> tuple[VGG, VGG]:
    """Divides a network behind so many layers."""
    first, rest = model.layers[:behind], model.layers[behind:]
    # What follows the features is computed in float32.
    convolves = any(isinstance(layer, Conv) for layer in rest)
    return (
        VGG(first, dtype=model.dtype),
        VGG(rest, dtype=model.dtype) if convolves else VGG(rest),
    )


def standardised(params: Params, features: np.ndarray) -> Params:
    """Returns parameters with what standardises these features, where a layer does so.

    Args:
      params: of the layers behind the features.
      features: (n, m) of training images; as many are used as the layer takes.
    """
    for layer, arrays in params.items():
        if "factor" in arrays:
            taken = features[:, : len(arrays["factor"])]
            return {**params, layer: _standard(taken)}
    return params


def _standard(features: np.ndarray) -> dict[str, jax.Array]:
    """Returns mean and factor of features (n, m)."""
    deviation = features.std(0, dtype=np.float64)
    own = {
        "mean": features.mean(0, dtype=np.float64),
        # A feature that never varies tells nothing, and stays 0.
        "factor": np.divide(1, deviation, where=deviation > 1e-6, out=0 * deviation),
    }
    return {name: jnp.asarray(a, jnp.float32) for name, a in own.items()}


def folded(model: VGG, params: Params) -> tuple[VGG, Params]:
    """Returns the same function with no layer of its own that standardises.

    What that does becomes a part of the dense layer behind it, and blocks of which it
    uses nothing are left out.
    """
    layers = list(model.layers)
    own = next((x for x in layers if isinstance(x, Standardise)), None)
    if own is None:
        return model, params
    place = layers.index(own)
    averages, dense = layers[place - 1], layers[place + 1]
    assert isinstance(averages, BlockAverages), "what is standardised"
    assert isinstance(dense, Dense), "what it is standardised for"
    widths = {row.name: row.shape[-1] for row in layer_table(model.layers, 32)}
    total = itertools.accumulate(widths[name] for name in averages.poolings)
    used = averages.poolings[: list(total).index(own.features) + 1]
    last = [layer.name for layer in layers].index(used[-1])
    kept = (
        *layers[: last + 1],
        BlockAverages(averages.name, used),
        *layers[place + 1 :],
    )
    arrays = {x.name: params[x.name] for x in kept if x.name in params}
    kernel = params[own.name]["factor"][:, None] * params[dense.name]["kernel"]
    shift = jnp.matmul(params[own.name]["mean"], kernel, precision="highest")
    bias = params[dense.name]["bias"] - shift
    arrays[dense.name] = {"kernel": kernel, "bias": bias}
    return VGG(kept, dtype=model.dtype), arrays
