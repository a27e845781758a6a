"""What each field of a configuration may hold, and which fields go together."""

import dataclasses
import difflib
import enum
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from allcls_jax.config import (
    ClassWeights,
    Config,
    DataSource,
    ExperimentKind,
    HeadKind,
    OptimizerName,
    Sampling,
    SplitKind,
)
from allcls_jax.errors import InputError

NUM_OFFICIAL_FOLDS = 3


def validate(config: Config) -> Config:
    """Returns the configuration if it can work.

    Raises:
      InputError: naming every field that breaks its rule, with value and remedy.
    """
    # The rules compare values, which only values of the right type bear.
    if problems := list(misfits(config)) or list(_problems(config)):
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise InputError(f"the configuration cannot work:\n{lines}")
    return config


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
        "data.num_folds", data.num_folds, "at least 2", ok=data.num_folds >= 2
    )
    one_fold = (ExperimentKind.RUN, ExperimentKind.SWEEP)
    every_fold = config.experiment.kind not in one_fold
    yield from out_of_range(
        "data.test_fold",
        data.test_fold,
        f"from 0 to data.num_folds - 1 = {data.num_folds - 1}",
        # What runs every fold does not read it.
        ok=data.test_fold >= 0
        and (every_fold or data.test_fold < max(2, data.num_folds)),
    )
    yield from out_of_range(
        "data.repeat",
        data.repeat,
        "from 0 to 2**32 - 1",
        ok=0 <= data.repeat < 2**32,
    )
    if data.split is SplitKind.OFFICIAL and data.num_folds != NUM_OFFICIAL_FOLDS:
        yield (
            f"data.num_folds = {data.num_folds}: the official folds are "
            f"{NUM_OFFICIAL_FOLDS}; others are drawn with data.split = 'grouped'"
        )
    yield from out_of_range(
        "data.validation",
        data.validation,
        "between 0 and 1, both excluded: the best checkpoint is chosen on validation",
        ok=0 < data.validation < 1,
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
    rarer = synthetic.num_images * min(synthetic.all_share, 1 - synthetic.all_share)
    yield from out_of_range(
        "data.synthetic.all_share",
        synthetic.all_share,
        "between 0 and 1, and leave each patient of the rarer class an image",
        ok=2 * int(rarer) >= synthetic.num_patients
        or synthetic.num_images < synthetic.num_patients,
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
        "model.blocks", model.blocks, "from 1 to 5", ok=1 <= model.blocks <= 5
    )
    if model.blocks != 5 and model.head is not HeadKind.BLOCKS:
        yield (
            f"model.blocks = {model.blocks}: the head {str(model.head)!r} takes the "
            "last block's output; set model.head = 'blocks'"
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
    for name, value in (
        ("optim.ema", optim.ema),
        ("train.label_smoothing", train.label_smoothing),
    ):
        yield from out_of_range(
            name, value, "at least 0 and below 1", ok=0 <= value < 1
        )
    yield from out_of_range(
        "train.mixup",
        train.mixup,
        "from 0, for none, to 1000, where every weight is about a half",
        ok=0 <= train.mixup <= 1000,
    )
    epochs = train.num_epochs
    yield from out_of_range(
        "optim.warmup",
        optim.warmup,
        "0 or more epochs, and fewer than train.num_epochs",
        ok=0 <= optim.warmup < (float("inf") if epochs is None else epochs),
    )
    if train.sampling is not Sampling.IMAGES and (
        train.class_weights is not ClassWeights.NONE
    ):
        yield (
            f"train.sampling = {str(train.sampling)!r} balances the classes already; "
            "set train.class_weights = 'none'"
        )
    yield from _pattern_problems(optim.trainable)
    augment = config.augment
    yield from out_of_range(
        "augment.rotation",
        augment.rotation,
        "from 0 to 180 degrees",
        ok=0 <= augment.rotation <= 180,
    )
    for name in ("scale", "shift", "stain", "brightness", "mask"):
        value = getattr(augment, name)
        yield from out_of_range(
            f"augment.{name}", value, "at least 0 and below 1", ok=0 <= value < 1
        )
    for name, most in (("blur", 8), ("jpeg", 16)):
        value = getattr(augment, name)
        yield from out_of_range(
            f"augment.{name}", value, f"from 0 to {most}", ok=0 <= value <= most
        )
    yield from out_of_range(
        "train.checkpoint_seconds",
        train.checkpoint_seconds,
        "0 or more",
        ok=train.checkpoint_seconds >= 0,
    )
    for name in ("num_epochs", "batch_size", "forward_batch_size", "patience"):
        value = getattr(train, name)
        yield from out_of_range(
            f"train.{name}", value, "at least 1", ok=value is None or value >= 1
        )
    evaluation, experiment = config.evaluation, config.experiment
    yield from out_of_range(
        "evaluation.views",
        evaluation.views,
        "1, or a multiple of 8 up to 64",
        ok=evaluation.views == 1
        or (evaluation.views % 8 == 0 and 8 <= evaluation.views <= 64),
    )
    yield from out_of_range(
        "evaluation.prevalence",
        evaluation.prevalence,
        "between 0 and 1, both excluded",
        ok=0 < evaluation.prevalence < 1,
    )
    yield from out_of_range(
        "evaluation.num_resamples",
        evaluation.num_resamples,
        "at least 100, and 2,000 for figures that are reported",
        ok=evaluation.num_resamples >= 100,
    )
    first = {"num_seeds": config.seed, "num_repeats": data.repeat}
    for name, begin in first.items():
        value = getattr(experiment, name)
        yield from out_of_range(
            f"experiment.{name}",
            value,
            "at least 1, and all of them below 2**32",
            ok=1 <= value <= max(1, 2**32 - begin),
        )
        if value != 1 and experiment.kind is ExperimentKind.RUN:
            yield (
                f"experiment.{name} = {value}: a single run is one network; set "
                "experiment.kind = 'cross_validation', or take the variant :cv"
            )


def _pattern_problems(rules: Any) -> Iterator[str]:
    """Yields what is wrong with `optim.trainable` taken by itself."""
    shape = (
        'must be pairs such as (("block[1-4].*", False), ("block5.*", 0.1), '
        '("dense.*", True)), with shares of the learning rate from 0 on'
    )
    for rule in rules:
        match rule:
            case (str() as pattern, bool() | int() | float() as share) if (
                0 <= share < float("inf")
            ):
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
