"""The paper's recipe with VGG16 in place of VGG19.

    python -m allcls_jax.main --config configs/vgg16.py

trains on built-in synthetic cells; `--config.data.dir=PATH` on real ones. The variant
`configs/vgg16.py:smoke` runs a tiny network in seconds, to see that everything works.
"""

from allcls_jax.config import Config, ModelConfig, ModelName


def get_config(variant: str | None = None) -> Config:
    """Returns the recipe, or its variant `smoke`."""
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
        case _:
            raise ValueError(f"variant {variant!r}: the variants are 'smoke'")
    return config
