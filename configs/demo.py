"""A small network that learns to tell drawn cells, in half a minute: to try things out.

    allcls train --config demo --workdir RUN

Its convolutions are random and frozen; the head learns from 480 synthetic cells of 48
synthetic patients. It says nothing about leukemia.
"""

from allcls_jax.config import Config, ModelConfig, ModelName


def get_config() -> Config:
    """Returns the recipe of the small network."""
    config = Config(
        model=ModelConfig(name=ModelName.TINY, weights="random", dropout=0.2)
    )
    config.data.image_size = 96
    config.data.synthetic.num_images = 480
    config.data.synthetic.num_patients = 48
    config.optim.learning_rate = 3e-3
    config.train.num_epochs = 40
    return config
