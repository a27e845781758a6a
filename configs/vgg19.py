"""The paper's recipe: frozen ImageNet VGG19, flatten, dense 256, dropout, dense 2.

    python -m allcls_jax.main --config configs/vgg19.py

trains on built-in synthetic cells; `--config.data.dir=PATH` on real ones. Variants:
`configs/vgg19.py:smoke` runs a tiny network in seconds, to see that everything works;
`:cv` cross-validates over folds that keep patients whole, with three seeds each;
`:ladder` does so under splits that leak more and more; `:best` is the recipe that was
best on patients never seen, `:finetune` trains all of the network; `:sweep` and
`:sweep_tuning` compare recipes. `allcls_jax/recipes.py` has them.
"""

from allcls_jax.config import Config, ModelConfig, ModelName
from allcls_jax.recipes import vary


def get_config(variant: str | None = None) -> Config:
    """Returns the recipe, or a variant of it."""
    return vary(Config(model=ModelConfig(name=ModelName.VGG19)), variant)
