"""The paper's recipe with VGG16 in place of VGG19.

    python -m allcls_jax.main --config configs/vgg16.py

trains on built-in synthetic cells; `--config.data.dir=PATH` on real ones. Variants:
`configs/vgg16.py:smoke` runs a tiny network in seconds, to see that everything works;
`:cv` cross-validates over folds that keep patients whole, with three seeds each;
`:ladder` does so under splits that leak more and more.
"""

from allcls_jax.config import (
    Config,
    ExperimentKind,
    ModelConfig,
    ModelName,
    SplitKind,
)


def get_config(variant: str | None = None) -> Config:
    """Returns the recipe, or a variant of it."""
    config = Config(model=ModelConfig(name=ModelName.VGG16))
    match variant:
        case None:
            pass
        case "smoke":
            config.model.name = ModelName.TINY
            config.model.weights = "random"
            config.data.image_size = 32
            config.data.synthetic.num_images = 96
            config.train.num_epochs = 2
        case "cv":
            config.experiment.kind = ExperimentKind.CROSS_VALIDATION
            config.experiment.num_seeds = 3
            config.data.split = SplitKind.GROUPED
        case "ladder":
            config.experiment.kind = ExperimentKind.LEAK_LADDER
        case _:
            raise ValueError(
                f"variant {variant!r}: the variants are 'smoke', 'cv' and 'ladder'"
            )
    return config
