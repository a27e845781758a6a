"""The rows of the table by key, and what each must reach; in the order of the table."""

import dataclasses

from allcls_jax.config import ModelName
from allcls_jax.experiments.benchmark.record import Bar


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a row is about.

    Attributes:
      what: was measured, in words.
      gpu: what its score must reach on a GPU, if anything.
      cpu: the same on a CPU.
    """

    what: str
    gpu: Bar | None = None
    cpu: Bar | None = None

    def bar(self, platform: str) -> Bar | None:
        """What must be reached on a platform."""
        return self.gpu if platform == "gpu" else self.cpu


def _at_least(value: float) -> Bar:
    return Bar(">=", value)


def _at_most(value: float) -> Bar:
    return Bar("<=", value)


def _forward(model: ModelName) -> dict[str, Entry]:
    name = str(model).upper()
    share = "share of the matrix product's rate"
    return {
        f"forward {model}": Entry(
            f"{name} stack forward", _at_least(1.15), _at_least(1)
        ),
        f"forward {model} share": Entry(f"{name} forward, {share}", _at_least(0.8)),
        f"forward {model} large": Entry(
            f"{name} stack forward, larger batch", _at_least(1.15), _at_least(1)
        ),
        f"forward {model} large share": Entry(f"{name}, larger batch, {share}"),
    }


CATALOG: dict[str, Entry] = {
    "recipe": Entry(
        "the whole recipe, from packed images to a trained head",
        _at_least(30),
        _at_least(12),
    ),
    "recipe best": Entry("the recipe, Keras at its own best batch"),
    "recipe cold": Entry(
        "the recipe as a cold process, imports and compiling included"
    ),
    **_forward(ModelName.VGG19),
    **_forward(ModelName.VGG16),
    **_forward(ModelName.TINY),
    "head epoch": Entry("an epoch of one head on kept features"),
    "heads epoch": Entry("an epoch of many heads at once"),
    "heads ratio": Entry("many heads at once, times one head", _at_most(11)),
    "heads bandwidth": Entry(
        "the optimizer's bytes, share of the copy bandwidth", _at_least(0.7)
    ),
    "fine-tuning ratio": Entry(
        "fine-tuning with augmentation, times a forward pass",
        _at_most(4.5),
    ),
    "fine-tuning varied": Entry("fine-tuning with rotation, zoom and stain"),
    "fine-tuning plain": Entry("fine-tuning without augmentation"),
    "fine-tuning forward": Entry("a forward pass at the batch of fine-tuning"),
    "fine-tuning augmentation": Entry("augmentation's share of a fine-tuning step"),
    "fine-tuning streamed": Entry("fine-tuning, images read from the pack meanwhile"),
    "fine-tuning idle": Entry("share of that in which the device waits for images"),
    "second run": Entry(
        "the whole command again, its cache being warm", cpu=_at_least(5)
    ),
    "help": Entry("`--help`, from start to end", _at_most(1), _at_most(1)),
    "decoding": Entry("decoding and resizing", _at_least(0.9), _at_least(0.9)),
    "packing": Entry("packing"),
    "audit": Entry("audit: broken files and twins"),
    "prediction": Entry("prediction, from the pack to probabilities"),
    "memory": Entry(
        "peak host memory of many images, times that of few",
        _at_most(1.1),
        _at_most(1.1),
    ),
    "linear": Entry("seconds an image of many images, times those of few"),
}
