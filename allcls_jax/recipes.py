"""The named variants of a configuration, each a short difference from the paper's.

`configs/vgg16.py:NAME` and `configs/vgg19.py:NAME` are these of their network.
"""

from collections.abc import Callable

from allcls_jax.config import (
    Config,
    ExperimentKind,
    HeadKind,
    ModelName,
    OptimizerName,
    Sampling,
    Schedule,
    SplitKind,
)


def vary(config: Config, variant: str | None) -> Config:
    """Returns the configuration, changed as a variant says.

    Raises:
      ValueError: if there is no such variant.
    """
    if variant is not None:
        if variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise ValueError(f"variant {variant!r}: the variants are {known}")
        VARIANTS[variant](config)
    return config


def _smoke(config: Config) -> None:
    """A tiny network in seconds, to see that everything works."""
    config.model.name = ModelName.TINY
    config.model.weights = "random"
    config.data.image_size = 32
    config.data.synthetic.num_images = 96
    config.train.num_epochs = 2


def _cv(config: Config) -> None:
    """Every fold of those that keep patients whole, with three seeds each."""
    config.experiment.kind = ExperimentKind.CROSS_VALIDATION
    config.experiment.num_seeds = 3
    config.data.split = SplitKind.GROUPED


def _ladder(config: Config) -> None:
    """The same recipe under splits that leak more and more."""
    config.experiment.kind = ExperimentKind.LEAK_LADDER


def _best(config: Config) -> None:
    """What was best on patients never seen, of all that was tried without a GPU."""
    config.data.crop = 300
    config.model.head = HeadKind.BLOCKS
    config.model.blocks = 4
    config.optim.name = OptimizerName.ADAMW
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.05
    config.optim.schedule = Schedule.COSINE
    config.train.mixup = 1.0


def _finetune(config: Config) -> None:
    """All blocks trained, the lower ones slowly, on pictures that vary. Wants a GPU."""
    config.model.head = HeadKind.BLOCKS
    config.optim.name = OptimizerName.ADAMW
    config.optim.learning_rate = 3e-4
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 1.0
    config.optim.schedule = Schedule.COSINE
    config.optim.warmup = 1.0
    config.optim.ema = 0.99
    config.optim.trainable = (
        (r"block[12]_conv\d+/.*", 0.03),
        (r"block[345]_conv\d+/.*", 0.1),
        (r"(dense|standardise)_\d+/.*", True),
    )
    config.augment.dihedral = True
    config.augment.rotation = 180.0
    config.augment.scale = 0.15
    config.augment.shift = 0.05
    config.augment.stain = 0.15
    config.augment.brightness = 0.1
    config.train.sampling = Sampling.CLASSES
    config.train.label_smoothing = 0.05
    config.train.num_epochs = 12
    config.train.patience = 4
    config.evaluation.views = 8


def _sweep(config: Config) -> None:
    """Heads and ways to train them, upon the frozen stack."""
    config.model.head = HeadKind.BLOCKS
    config.optim.learning_rate = 1e-3
    config.experiment.kind = ExperimentKind.SWEEP
    config.experiment.num_seeds = 3
    config.data.split = SplitKind.GROUPED
    three = ("model.blocks=3",)
    decay = (*three, "optim.name=adamw", "optim.weight_decay=0.05")
    cosine = (*decay, "optim.schedule=cosine")
    best = (*cosine, "model.blocks=4")
    config.experiment.candidates = (
        ("gap", ("model.head=gap",)),
        ("two", ("model.blocks=2",)),
        ("three", three),
        ("four", ("model.blocks=4",)),
        ("slower", (*three, "optim.learning_rate=3e-4")),
        ("decay", decay),
        ("cosine", cosine),
        ("four-cosine", best),
        ("cosine-ema", (*cosine, "optim.ema=0.99")),
        ("smoothing", (*cosine, "train.label_smoothing=0.1")),
        ("classes", (*cosine, "train.sampling=classes")),
        ("patients", (*cosine, "train.sampling=patients")),
        ("weights", (*best, "train.class_weights=balanced")),
        ("stain", (*best, "model.normalise_stain=true")),
        ("cropped", (*best, "data.crop=300")),
        ("mixup", (*best, "data.crop=300", "train.mixup=1.0")),
        ("paper", ("model.head=flatten", "optim.learning_rate=1e-4")),
    )


def _sweep_tuning(config: Config) -> None:
    """Ways to fine-tune, beside each other. Wants a GPU."""
    _finetune(config)
    config.experiment.kind = ExperimentKind.SWEEP
    config.experiment.num_seeds = 3
    config.data.split = SplitKind.GROUPED
    frozen = 'optim.trainable=(("block.*", False), (".*", True))'
    upper = 'optim.trainable=(("block[123].*", False), ("block.*", 0.1), (".*", True))'
    whole = 'optim.trainable=(("block.*", 0.3), (".*", True))'
    config.experiment.candidates = (
        ("frozen", (frozen,)),
        ("upper-blocks", (upper,)),
        ("faster", (whole,)),
        ("gap", ("model.head=gap",)),
        ("flatten", ("model.head=flatten",)),
        ("no-stain-jitter", ("augment.stain=0", "augment.brightness=0")),
        ("strong-stain-jitter", ("augment.stain=0.3",)),
        ("normalised-stain", ("model.normalise_stain=true", "augment.stain=0")),
        ("no-rotation", ("augment.rotation=0",)),
        ("strong-scale", ("augment.scale=0.4",)),
        ("rough", ("augment.blur=1.5", "augment.jpeg=1", "augment.mask=0.3")),
        ("no-ema", ("optim.ema=0",)),
        ("no-smoothing", ("train.label_smoothing=0",)),
        ("mixup", ("train.mixup=0.2", "train.label_smoothing=0")),
        ("patients", ("train.sampling=patients",)),
        ("as-they-are", ("train.sampling=images",)),
        ("longer", ("train.num_epochs=24", "train.patience=8")),
        ("cropped", ("data.crop=300",)),
        ("larger", ("data.image_size=320", "train.batch_size=16")),
    )


VARIANTS: dict[str, Callable[[Config], None]] = {
    "smoke": _smoke,
    "cv": _cv,
    "ladder": _ladder,
    "best": _best,
    "finetune": _finetune,
    "sweep": _sweep,
    "sweep_tuning": _sweep_tuning,
}
