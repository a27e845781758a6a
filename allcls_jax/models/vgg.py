"""VGG as one table of layers, and the Flax module that runs any such table.

The same table gives the network, its parameter names (Keras'), the printed layer table
and the parameter counts, so they cannot disagree.

Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", table 1, configurations D (VGG16) and E (VGG19); the head is that of Garg,
"Acute Lymphoblastic Leukemia Classification Using Convolutional Neural Networks and
Transfer Learning", figure 7.
"""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from allcls_jax.config import HeadKind, ModelName
from allcls_jax.models import blocks

# Layer name → {"kernel", "bias"} → array, or its shape and type.
Params = dict[str, dict[str, jax.Array]]
ParamShapes = dict[str, dict[str, jax.ShapeDtypeStruct]]

_Leaf = TypeVar("_Leaf")

# The size of preprocessed input in grey levels: for the most part, black less the mean.
_GREY = 115.0

NUM_CLASSES = 2  # logits are (HEM, ALL), so that the index is the label

# Of each block: the number of 3x3 convolutions and of their channels.
BLOCKS: dict[ModelName, tuple[tuple[int, int], ...]] = {
    ModelName.VGG16: ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    ModelName.VGG19: ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
    ModelName.TINY: ((1, 4), (1, 8), (1, 8), (1, 16), (1, 16)),
}


@dataclasses.dataclass(frozen=True)
class Conv:
    """3x3 convolution, stride 1, zero padding, ReLU."""

    name: str
    channels: int


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """2x2 maximum, stride 2."""

    name: str


@dataclasses.dataclass(frozen=True)
class Flatten:
    """Rows, then columns, then channels, as in Keras."""

    name: str


@dataclasses.dataclass(frozen=True)
class GlobalAveragePool:
    """Mean over rows and columns."""

    name: str


@dataclasses.dataclass(frozen=True)
class BlockAverages:
    """log(1 + mean over rows and columns) of the outputs of poolings, side by side."""

    name: str
    poolings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Standardise:
    """(x - mean) * factor: in the beginning those of the training images' features."""

    name: str
    features: int  # the first so many; the others are dropped


@dataclasses.dataclass(frozen=True)
class Dense:
    """Matrix product and bias, with ReLU unless it gives the logits."""

    name: str
    units: int
    relu: bool


@dataclasses.dataclass(frozen=True)
class Dropout:
    """In training, zeroes this share of the values and scales up the others."""

    name: str
    rate: float


Pooling = Flatten | GlobalAveragePool | BlockAverages  # what gives features
Layer = Conv | MaxPool | Pooling | Standardise | Dense | Dropout


def conv_stack(name: ModelName, blocks: int = 5) -> tuple[Layer, ...]:
    """The convolutional part, `block1_conv1` to the pooling of the last block."""
    layers: list[Layer] = []
    for block, (depth, channels) in enumerate(BLOCKS[name][:blocks], start=1):
        layers += [Conv(f"block{block}_conv{i}", channels) for i in range(1, depth + 1)]
        layers.append(MaxPool(f"block{block}_pool"))
    return tuple(layers)


def block_of(name: str) -> int:
    """Returns the number of the block that a layer such as `block5_conv1` is of."""
    return int(name.removeprefix("block").partition("_")[0])


def head(
    kind: HeadKind,
    dropout: float,
    *,
    blocks: int = 5,
    standardised: int | None = None,
) -> tuple[Layer, ...]:
    """The paper's head, named as in its figure 7, or the same on pooled features.

    Args:
      kind: which.
      dropout: rate.
      blocks: of the head `blocks`, from how many it takes averages.
      standardised: of that head, how many features are standardised and used; None, in
        what `parts.folded` gives: all, as they are.
    """
    poolings = tuple(f"block{number}_pool" for number in range(1, blocks + 1))
    standardise = (
        () if standardised is None else (Standardise("standardise_1", standardised),)
    )
    pooled: dict[HeadKind, tuple[Layer, ...]] = {
        HeadKind.FLATTEN: (Flatten("flatten"),),
        HeadKind.GAP: (GlobalAveragePool("global_average_pooling"),),
        HeadKind.BLOCKS: (
            BlockAverages("block_averages", poolings),
            *standardise,
        ),
    }
    return (
        *pooled[kind],
        Dense("dense_2", 256, relu=True),
        Dropout("dropout_1", dropout),
        Dense("dense_3", NUM_CLASSES, relu=False),
    )


def channels(name: ModelName, blocks: int) -> int:
    """Returns how many channels the first blocks of a stack have together."""
    return sum(width for _, width in BLOCKS[name][:blocks])


def imagenet_top() -> tuple[Layer, ...]:
    """The three dense layers of the ImageNet classifier."""
    return (
        Flatten("flatten"),
        Dense("fc1", 4096, relu=True),
        Dense("fc2", 4096, relu=True),
        Dense("predictions", 1000, relu=False),
    )


class VGG(nn.Module):
    """Runs a table of layers.

    Attributes:
      layers: such as `conv_stack(name) + head(kind, dropout)`.
      dtype: in which the convolutions are computed. Parameters, and all that follows
        the convolutional stack, are float32.
      plain: whether to compute each convolution as XLA does, where another way is
        faster.
    """

    layers: tuple[Layer, ...]
    dtype: Any = jnp.float32
    plain: bool = False

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        dropout: jax.Array | float | None = None,
        earlier: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the last layer's output, and named ones on the way.

        Args:
          images: (n, height, width, 3) float32, preprocessed.
          train: whether dropout drops; then a `dropout` random stream is needed.
          dropout: rate, in [0, 1), in place of the table's; may be traced.
          earlier: named outputs of layers that came before those of this table.

        Returns:
          Logits (n, 2) float32, or what the last layer gives; and a dictionary with
          `block1_pool` … `block5_pool` (n, height / 2^i, width / 2^i, channels) in
          `dtype`, `features` (n, m) float32 behind the flattening or pooling, and
          `logits`.
        """
        x = images.astype(self.dtype)
        named: dict[str, jax.Array] = dict(earlier or {})
        in_blocks = self._runs_in_blocks()
        block: list[dict[str, jax.Array]] = []
        for layer in self.layers:
            match layer:
                case Conv(name) if in_blocks:
                    block.append(self.variables["params"][name])
                case Conv(name, channels):
                    conv = nn.Conv(channels, (3, 3), dtype=self.dtype, name=name)
                    x = nn.relu(conv(x))
                case MaxPool(name):
                    if block:
                        x = blocks.winograd(x, block, at_once=train)
                    else:
                        x = blocks.max_pool(x)
                    named[name], block = x, []
                case Flatten():
                    x = named["features"] = jax.lax.collapse(x, 1).astype(jnp.float32)
                case GlobalAveragePool():
                    x = named["features"] = x.astype(jnp.float32).mean((1, 2))
                case BlockAverages(_, poolings):
                    means = [
                        named[name].astype(jnp.float32).mean((1, 2))
                        for name in poolings
                    ]
                    x = named["features"] = jnp.log1p(jnp.concatenate(means, -1))
                case Standardise(name, features):
                    x = _Standardise(name=name)(x[:, :features])
                case Dense(name, units, relu):
                    x = nn.Dense(units, name=name)(x)
                    x = nn.relu(x) if relu else x
                case Dropout(_, rate):
                    if train:
                        given = rate if dropout is None else dropout
                        x = _drop(x, given, self.make_rng("dropout"))
        named["logits"] = x
        return x, named

    def _runs_in_blocks(self) -> bool:
        """Whether each block is computed as a whole, which is faster on a CPU."""
        ends_in_pooling = all(
            isinstance(after, Conv | MaxPool)
            for layer, after in itertools.pairwise((*self.layers, None))
            if isinstance(layer, Conv)
        )
        return (
            not self.plain
            and ends_in_pooling
            and blocks.winograd_runs(self.dtype)
            and not self.is_initializing()
        )


class _Standardise(nn.Module):
    """(x - mean) * factor, with a number of each for every feature."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = self.param("mean", nn.initializers.zeros, x.shape[-1:])
        return (x - mean) * self.param("factor", nn.initializers.ones, x.shape[-1:])


def _drop(x: jax.Array, rate: jax.Array | float, key: jax.Array) -> jax.Array:
    """Returns values of which a share is 0, and the others scaled up to their sum."""
    # Flax's own wants a rate that is known when the step is compiled. Rounded first,
    # one that is known gives the same masks as one that is not.
    kept = 1 - jnp.asarray(rate, x.dtype)
    return jnp.where(jax.random.bernoulli(key, kept, x.shape), x / kept, 0)


def param_shapes(model: VGG, image_size: int) -> ParamShapes:
    """Returns shape and type of every parameter, and computes nothing."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables: Any = jax.eval_shape(model.init, jax.random.key(0), images)
    return variables["params"]


def init_params(shapes: ParamShapes, *, seed: int) -> Params:
    """Returns random float32 parameters as plain nested dictionaries.

    Convolution kernels are drawn after He et al. (their variance keeps the signal's
    size through a deep stack of ReLUs), the first one for input in grey levels; dense
    ones after Glorot & Bengio, Keras' default and so the paper's; biases are 0. Each is
    drawn from a stream of its own name, on the host: the same numbers everywhere, and
    nothing to compile.

    Args:
      shapes: from `param_shapes`.
      seed: from 0 to 2**32 - 1.
    """

    def draw(layer: str, name: str, shape: tuple[int, ...]) -> jax.Array:
        rng = np.random.default_rng([seed, zlib.crc32(f"{layer}/{name}".encode())])
        if name in ("bias", "mean"):
            values = np.zeros(shape)
        elif name == "factor":
            values = np.ones(shape)
        elif len(shape) == 4:
            deviation = math.sqrt(2 / math.prod(shape[:3]))
            of_images = shape[2] == 3
            values = rng.normal(0, deviation / (_GREY if of_images else 1), shape)
        else:
            limit = math.sqrt(6 / sum(shape))
            values = rng.uniform(-limit, limit, shape)
        return jnp.asarray(values, jnp.float32)

    return {
        layer: {name: draw(layer, name, leaf.shape) for name, leaf in arrays.items()}
        for layer, arrays in shapes.items()
    }


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """A row of the printed layer table."""

    name: str
    shape: tuple[int, ...]  # of one image's output
    parameters: int


def layer_table(layers: tuple[Layer, ...], image_size: int) -> list[LayerRow]:
    """Returns name, output shape and number of parameters of every layer."""
    shape: tuple[int, ...] = (image_size, image_size, 3)
    channels_of: dict[str, int] = {}
    rows = [LayerRow("input_1", shape, 0)]
    for layer in layers:
        parameters = 0
        match layer:
            case Conv(_, channels):
                parameters = (9 * shape[-1] + 1) * channels
                shape = (*shape[:2], channels)
            case MaxPool(name):
                shape = (*(side // 2 for side in shape[:2]), shape[-1])
                channels_of[name] = shape[-1]
            case Flatten():
                shape = (math.prod(shape),)
            case GlobalAveragePool():
                shape = shape[-1:]
            case BlockAverages(_, poolings):
                shape = (sum(channels_of[name] for name in poolings),)
            case Standardise(_, features):
                shape = (features,)
                parameters = 2 * features
            case Dense(_, units, _):
                parameters = (shape[0] + 1) * units
                shape = (units,)
            case Dropout():
                pass
        rows.append(LayerRow(layer.name, shape, parameters))
    return rows


def flatten_params(params: Mapping[str, Mapping[str, _Leaf]]) -> dict[str, _Leaf]:
    """Returns `{"block1_conv1/kernel": array, …}`."""
    return {
        f"{layer}/{name}": array
        for layer, arrays in params.items()
        for name, array in arrays.items()
    }
