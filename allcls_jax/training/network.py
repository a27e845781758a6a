"""The network of a run, with its parameters in place: init first, then pretrained.

The optimizer is made after both, around the parameters as they then are.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from allcls_jax import terminal
from allcls_jax.config import ComputeDtype, Config, DataSource
from allcls_jax.models import parts, pretrained, vgg
from allcls_jax.models.preprocessing import CAFFE, Preprocessing
from allcls_jax.models.weight_files import WeightFile
from allcls_jax.training import optim, sharding

# What every head parameter is called; the rest comes from the weights file.
HEAD = (r"(dense|standardise)_\d+/.*",)
IMAGENET_TOP = (r"fc\d/.*", r"predictions/.*")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with parameters in place."""

    model: vgg.VGG
    params: vgg.Params
    shares: optim.Shares  # of the learning rate
    mask: optim.Mask
    preprocessing: Preprocessing
    weights: dict[str, Any]  # as in results.json
    counts: dict[str, int]  # parameters: total, trainable, frozen
    shardings: sharding.Shardings

    @property
    def learns_stack(self) -> bool:
        """Whether any of the convolutions is trained."""
        _, learning = parts.split_at_learning(self.model, self.mask)
        return any(isinstance(layer, vgg.Conv) for layer in learning.layers)

    def learning_params(self, seed: int) -> vgg.Params:
        """Returns what a seed gives to the layers behind the frozen part."""
        _, learning = parts.split_at_learning(self.model, self.mask)
        own = {
            layer.name: self.params[layer.name]
            for layer in learning.layers
            if layer.name in self.params
        }
        return optim.merge(own, self.seeded(seed))

    def seeded(self, seed: int) -> vgg.Params:
        """Returns what a seed draws: the trainable parameters that no file gives."""
        shapes = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype),
            optim.trainable(self.params, self.mask),
        )
        if self.weights["source"] != "random":
            shapes = {
                layer: leaves
                for layer, leaves in shapes.items()
                if any(re.fullmatch(name, f"{layer}/") for name in HEAD)
            }
        return vgg.init_params(shapes, seed=seed)


def build(config: Config, source: DataSource, *, cache_dir: Path) -> Network:
    """Model, then pretrained weights; the optimizer comes after both.

    Args:
      config: validated.
      source: of the cells, for only synthetic ones make do with a random backbone.
      cache_dir: weights are looked for and kept there.
    """
    shardings = sharding.data_parallel()
    model = make_model(config)
    shapes = vgg.param_shapes(model, config.data.image_size)
    shares = optim.learning_rate_shares(shapes, config.optim.trainable)
    mask = optim.trainable_mask(shares)
    params = vgg.init_params(shapes, seed=config.seed)
    found = _find_weights(config, source, cache_dir)
    if found:
        params = pretrained.merge(params, found.arrays, keep=HEAD, ignore=IMAGENET_TOP)
    else:
        # A stand-in for pretrained weights is as they are: the same for every seed.
        stand_in = vgg.init_params(shapes, seed=0)
        params = optim.merge(stand_in, optim.trainable(params, mask))
    weights = {
        "source": "imagenet" if found else "random",
        "file": found.source_name if found else None,
        "sha256": found.source_sha256 if found else None,
    }
    params = shardings.put_replicated(params)
    sizes = jax.tree.map(lambda array: array.size, params)
    total = sum(jax.tree.leaves(sizes))
    trainable = sum(jax.tree.leaves(jax.tree.map(lambda n, t: n * t, sizes, mask)))
    counts = {"total": total, "trainable": trainable, "frozen": total - trainable}
    preprocessing = dataclasses.replace(
        found.preprocessing if found else CAFFE,
        normalise_stain=config.model.normalise_stain,
    )
    return Network(
        model, params, shares, mask, preprocessing, weights, counts, shardings
    )


def make_model(config: Config) -> vgg.VGG:
    """Returns the network of a configuration, without parameters."""
    layers = vgg.conv_stack(config.model.name) + vgg.head(
        config.model.head,
        config.model.dropout,
        standardised=vgg.channels(config.model.name, config.model.blocks),
    )
    return vgg.VGG(layers, dtype=compute_dtype(config.model.dtype))


def compute_dtype(kind: ComputeDtype) -> Any:
    """Returns the type of the convolutions, on the devices that are here."""
    match kind:
        case ComputeDtype.FLOAT32:
            return jnp.float32
        case ComputeDtype.BFLOAT16:
            return jnp.bfloat16
        case ComputeDtype.AUTO:
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def _find_weights(
    config: Config, source: DataSource, cache_dir: Path
) -> WeightFile | None:
    if config.model.weights == "random":
        return None
    try:
        return pretrained.find(config.model.name, config.model.weights, cache_dir)
    except pretrained.WeightsUnavailableError as error:
        if source is not DataSource.SYNTHETIC:
            raise
        terminal.warn(str(error))
        terminal.warn(
            "going on with SEEDED RANDOM weights in the frozen backbone: the figures "
            "of this run say nothing about transfer learning"
        )
        return None
