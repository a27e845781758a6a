"""Every setting of a run: its meaning, unit, legal values and default.

`configs/*.py` build a `Config`, `--config.section.field=value` overrides one field,
`Config.validate` refuses what cannot work before anything is read or computed.
"""

import copy
import dataclasses
import difflib
import enum
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from allcls_jax.errors import InputError


class DataSource(enum.StrEnum):
    """Where cells come from."""

    SYNTHETIC = "synthetic"  # drawn by this package; nothing to download
    CNMC = "cnmc"  # C-NMC 2019 in any of its layouts
    FOLDER = "folder"  # class/patient/image folders, or a csv


class SplitKind(enum.StrEnum):
    """How images are divided into training, validation and test."""

    OFFICIAL = "official"  # the folds that the data set comes with
    GROUPED = "grouped"  # our own folds, patients (or groups of them) kept whole
    IMAGE = "image"  # the paper's plain split by image; leaky: patients shared


class OnBadImage(enum.StrEnum):
    """What to do with an image that cannot be read."""

    ERROR = "error"  # stop and list all of them
    SKIP = "skip"  # go on without them and write the list


class ModelName(enum.StrEnum):
    """Network variants; `models/vgg.py` holds the table."""

    VGG16 = "vgg16"
    VGG19 = "vgg19"
    TINY = "tiny"  # five small blocks, for tests


class HeadKind(enum.StrEnum):
    """What stands between the convolutional stack and the two logits."""

    FLATTEN = "flatten"  # the paper's: flatten, dense 256, dropout, dense 2
    GAP = "gap"  # global average pooling, dense 256, dropout, dense 2


class ComputeDtype(enum.StrEnum):
    """The type in which the convolutions are computed; parameters stay float32."""

    AUTO = "auto"  # bfloat16 on GPU and TPU, float32 on CPU
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class OptimizerName(enum.StrEnum):
    """Optimizers of `training/optim.py`."""

    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"  # with Nesterov momentum 0.9


class ClassWeights(enum.StrEnum):
    """How the loss weighs the two classes."""

    NONE = "none"
    BALANCED = "balanced"  # n / (2 n_class), from the training images


@dataclasses.dataclass
class SyntheticConfig:
    """The built-in cells (`data/synthetic.py`)."""

    num_images: int = 240
    num_patients: int = 24  # half ALL, half HEM
    # 0: a patient's stain and texture give nothing away; 1: they tell who it is.
    patient_effect: float = 0.5
    seed: int = 0  # of the drawing; the run's own seed leaves the cells alone


@dataclasses.dataclass
class DataConfig:
    """Which cells, how they are cut and resized, and who tests whom."""

    # None: synthetic without `dir`, else told from the folder's layout.
    source: DataSource | None = None
    dir: str | None = None  # folder, zip or csv; or what tools/prepare_data.py wrote
    image_size: int = 224  # pixels, the network's square input
    pack_size: int | None = None  # pixels stored, ≥ image_size; None: image_size
    crop: int | None = None  # centre square in pixels before resizing; None: whole
    limit: int | None = None  # number of labelled images; every patient keeps a share
    split: SplitKind = SplitKind.OFFICIAL
    test_fold: int = 2  # 0 to 2; read where there is no labelled preliminary part
    validation: float = 0.15  # share of the training patients, in (0, 1)
    groups: str | None = None  # JSON lists of patients that share cells; grouped split
    on_bad_image: OnBadImage = OnBadImage.ERROR
    num_workers: int = 0  # processes that read training images; 0: threads only
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)


@dataclasses.dataclass
class ModelConfig:
    """The network and where its frozen part comes from."""

    name: ModelName = ModelName.VGG19
    # "imagenet": found in the caches or downloaded; "random": seeded; else a file.
    weights: str = "imagenet"
    head: HeadKind = HeadKind.FLATTEN
    dropout: float = 0.5  # in [0, 1), between the two dense layers
    dtype: ComputeDtype = ComputeDtype.AUTO


@dataclasses.dataclass
class OptimConfig:
    """How trainable parameters move."""

    name: OptimizerName = OptimizerName.ADAM
    learning_rate: float = 1e-4
    weight_decay: float = 0.0  # decoupled, on kernels only; needs adamw or sgd
    clip_norm: float | None = None  # of the trainable gradients; None: no clipping
    # (regular expression, trainable): the first that matches a whole parameter name
    # such as block5_conv4/kernel decides; each name must be matched.
    trainable: tuple[tuple[str, bool], ...] = (
        (r"block\d+_conv\d+/.*", False),
        (r"dense_\d+/.*", True),
    )


@dataclasses.dataclass
class TrainConfig:
    """The training loop."""

    num_epochs: int | None = None  # None: 20, or 5 on synthetic cells
    batch_size: int = 32  # images of one step over all devices and processes
    class_weights: ClassWeights = ClassWeights.NONE
    # Where the whole convolutional stack is frozen, compute its features once per
    # image and keep them; false computes them anew in every step.
    cache_features: bool = True


@dataclasses.dataclass
class Config:
    """One run, from cells to figures."""

    seed: int = 0  # of the split, the initial parameters, shuffling and dropout
    cache_dir: str | None = None  # packed cells, weights; None: the user's cache folder
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def validate(self) -> "Config":
        """Returns this configuration if it can work.

        Raises:
          InputError: naming every field that breaks its rule, with value and remedy.
        """
        # The rules compare values, which only values of the right type bear.
        if problems := list(misfits(self)) or list(_problems(self)):
            lines = "\n".join(f"  - {problem}" for problem in problems)
            raise InputError(f"the configuration cannot work:\n{lines}")
        return self

    @property
    def pack_size(self) -> int:
        """Pixels at which cells are stored."""
        return self.data.pack_size or self.data.image_size

    def resolved(self, source: DataSource) -> "Config":
        """Returns a copy without the choices that were left to the kind of data."""
        config = copy.deepcopy(self)
        config.data.source = source
        if config.train.num_epochs is None:
            config.train.num_epochs = 5 if source is DataSource.SYNTHETIC else 20
        return config

    def to_json(self) -> str:
        """This configuration as indented JSON, fields in their written order."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def field_names(kind: type = Config, prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of each field, sections included."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        yield name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from field_names(hints[field.name], f"{name}.")


def nearest_field(name: str) -> str | None:
    """Returns the field whose dotted name is most like a misspelt one, if any is."""
    names = list(field_names())
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        last = name.rpartition(".")[2]
        tails = {known.rpartition(".")[2]: known for known in names}
        close = [tails[tail] for tail in difflib.get_close_matches(last, tails, n=1)]
    return close[0] if close else None


def misfits(config: Any, prefix: str = "") -> Iterator[str]:
    """Yields a line for each attribute that is no field or has another type than it."""
    hints: dict[str, Any] = typing.get_type_hints(type(config))
    fields = [field.name for field in dataclasses.fields(config)]
    for name in sorted(vars(config).keys() - set(fields)):
        nearest = nearest_field(prefix + name)
        hint = f"; did you mean {nearest}?" if nearest else ""
        yield f"{prefix}{name}: no such field{hint}"
    for name in fields:
        # A field that was deleted counts as None.
        value, hint = getattr(config, name, None), hints[name]
        if dataclasses.is_dataclass(value) and isinstance(value, hint):
            yield from misfits(value, f"{prefix}{name}.")
            continue
        union = isinstance(hint, types.UnionType)
        kinds = typing.get_args(hint) if union else (typing.get_origin(hint) or hint,)
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(_describe(kind) for kind in kinds)
            yield f"{prefix}{name} = {value!r}: must be {names}"


def _problems(config: Config) -> Iterator[str]:
    """Yields one line for each broken rule; each value has the type of its field."""
    data, model, optim, train = config.data, config.model, config.optim, config.train

    def out_of_range(name: str, value: Any, rule: str, *, ok: bool) -> Iterator[str]:
        if not ok:
            yield f"{name} = {value!r}: must be {rule}"

    yield from out_of_range(
        "seed", config.seed, "from 0 to 2**32 - 1", ok=0 <= config.seed < 2**32
    )
    size = data.image_size
    yield from out_of_range(
        "data.image_size",
        size,
        "a multiple of 32 of at least 32, for the five poolings each halve it",
        ok=size >= 32 and size % 32 == 0,
    )
    yield from out_of_range(
        "data.pack_size",
        data.pack_size,
        f"at least data.image_size = {size}, or None for the same",
        ok=data.pack_size is None or data.pack_size >= size,
    )
    for name in ("crop", "limit"):
        value = getattr(data, name)
        yield from out_of_range(
            f"data.{name}",
            value,
            "a positive number or None",
            ok=value is None or value > 0,
        )
    yield from out_of_range(
        "data.test_fold", data.test_fold, "0, 1 or 2", ok=data.test_fold in (0, 1, 2)
    )
    yield from out_of_range(
        "data.validation",
        data.validation,
        "between 0 and 1, both excluded: the best checkpoint is chosen on validation",
        ok=0 < data.validation < 1,
    )
    if data.groups is not None and data.split is not SplitKind.GROUPED:
        yield (
            f"data.groups = {data.groups!r}: only data.split = 'grouped' keeps groups "
            f"whole, and data.split is {str(data.split)!r}"
        )
    if data.dir is None and data.source not in (None, DataSource.SYNTHETIC):
        yield (
            f"data.source = {str(data.source)!r} needs data.dir; give it with "
            "--config.data.dir=PATH"
        )
    if data.dir is not None and data.source is DataSource.SYNTHETIC:
        yield (
            f"data.dir = {data.dir!r}: synthetic cells are drawn, not read; leave out "
            "data.dir or data.source"
        )
    yield from out_of_range(
        "data.num_workers", data.num_workers, "0 or more", ok=data.num_workers >= 0
    )
    synthetic = data.synthetic
    yield from out_of_range(
        "data.synthetic.num_patients",
        synthetic.num_patients,
        "even and at least 12, for three folds with both classes and validation",
        ok=synthetic.num_patients >= 12 and synthetic.num_patients % 2 == 0,
    )
    yield from out_of_range(
        "data.synthetic.num_images",
        synthetic.num_images,
        f"at least data.synthetic.num_patients = {synthetic.num_patients}",
        ok=synthetic.num_images >= synthetic.num_patients,
    )
    yield from out_of_range(
        "data.synthetic.patient_effect",
        synthetic.patient_effect,
        "from 0 to 1",
        ok=0 <= synthetic.patient_effect <= 1,
    )
    yield from out_of_range(
        "model.weights",
        model.weights,
        "'imagenet', 'random' or a file",
        ok=bool(model.weights),
    )
    yield from out_of_range(
        "model.dropout",
        model.dropout,
        "at least 0 and below 1",
        ok=0 <= model.dropout < 1,
    )
    yield from out_of_range(
        "optim.learning_rate",
        optim.learning_rate,
        "above 0 and finite",
        ok=0 < optim.learning_rate < float("inf"),
    )
    yield from out_of_range(
        "optim.weight_decay",
        optim.weight_decay,
        "0 or more",
        ok=0 <= optim.weight_decay < float("inf"),
    )
    if optim.weight_decay and optim.name is OptimizerName.ADAM:
        yield (
            f"optim.weight_decay = {optim.weight_decay!r}: plain adam has none; set "
            "optim.name = 'adamw'"
        )
    yield from out_of_range(
        "optim.clip_norm",
        optim.clip_norm,
        "above 0, or None for no clipping",
        ok=optim.clip_norm is None or optim.clip_norm > 0,
    )
    yield from _pattern_problems(optim.trainable)
    for name in ("num_epochs", "batch_size"):
        value = getattr(train, name)
        yield from out_of_range(
            f"train.{name}", value, "at least 1", ok=value is None or value >= 1
        )


def _pattern_problems(rules: Any) -> Iterator[str]:
    """Yields what is wrong with `optim.trainable` taken by itself."""
    shape = 'must be pairs such as (("block.*", False), ("dense.*", True))'
    for rule in rules:
        match rule:
            case (str() as pattern, bool()):
                try:
                    re.compile(pattern)
                except re.error as error:
                    yield f"optim.trainable: {pattern!r} is no pattern ({error})"
            case _:
                yield f"optim.trainable: {rule!r} {shape}"


def _describe(kind: type) -> str:
    """What a value of `kind` looks like, for an error message."""
    if issubclass(kind, enum.StrEnum):
        return f"a {kind.__name__} ({', '.join(kind)})"
    return "None" if kind is types.NoneType else f"of type {kind.__name__}"
