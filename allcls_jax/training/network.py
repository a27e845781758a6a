"""The network of a run, with its parameters in place: init first, then pretrained.

The optimizer is made after both, around the parameters as they then are.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from allcls_jax import terminal
from allcls_jax.config import ComputeDtype, Config, DataSource
from allcls_jax.models import pretrained, vgg
from allcls_jax.models.preprocessing import (
    CAFFE,
    Preprocessing,
    preprocessing_from_json,
)
from allcls_jax.models.weight_files import WeightFile
from allcls_jax.training import optim, sharding

# What every head parameter is called; the rest comes from the weights file.
HEAD = (r"dense_\d+/.*",)
IMAGENET_TOP = (r"fc\d/.*", r"predictions/.*")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with parameters in place."""

    model: vgg.VGG
    params: vgg.Params
    mask: optim.Mask
    preprocessing: Preprocessing
    weights: dict[str, Any]  # as in results.json
    counts: dict[str, int]  # parameters: total, trainable, frozen
    shardings: sharding.Shardings


def build(
    config: Config,
    source: DataSource,
    *,
    cache_dir: Path,
    record: Mapping[str, Any] | None = None,
) -> Network:
    """Model, then pretrained weights; the optimizer comes after both.

    Args:
      config: validated.
      source: of the cells, for only synthetic ones make do with a random backbone.
      cache_dir: weights are looked for and kept there.
      record: of a checkpoint whose parameters will be restored over these; then no
        weights are looked for.
    """
    shardings = sharding.data_parallel()
    layers = vgg.conv_stack(config.model.name) + vgg.head(
        config.model.head, config.model.dropout
    )
    model = vgg.VGG(layers, dtype=_compute_dtype(config))
    shapes = vgg.param_shapes(model, config.data.image_size)
    mask = optim.trainable_mask(shapes, config.optim.trainable)
    params = vgg.init_params(shapes, seed=config.seed)
    if record is not None:
        preprocessing = preprocessing_from_json(record["preprocessing"])
        weights = dict(record["weights"])
    else:
        found = _find_weights(config, source, cache_dir)
        preprocessing = found.preprocessing if found else CAFFE
        weights = {
            "source": "imagenet" if found else "random",
            "file": found.source_name if found else None,
            "sha256": found.source_sha256 if found else None,
        }
        if found:
            params = pretrained.merge(
                params, found.arrays, keep=HEAD, ignore=IMAGENET_TOP
            )
    params = shardings.put_replicated(params)
    sizes = jax.tree.map(lambda array: array.size, params)
    total = sum(jax.tree.leaves(sizes))
    trainable = sum(jax.tree.leaves(jax.tree.map(lambda n, t: n * t, sizes, mask)))
    counts = {"total": total, "trainable": trainable, "frozen": total - trainable}
    return Network(model, params, mask, preprocessing, weights, counts, shardings)


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


def _compute_dtype(config: Config) -> Any:
    match config.model.dtype:
        case ComputeDtype.FLOAT32:
            return jnp.float32
        case ComputeDtype.BFLOAT16:
            return jnp.bfloat16
        case ComputeDtype.AUTO:
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
