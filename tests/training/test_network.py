"""What a network is built with."""

from pathlib import Path

import numpy as np
import pytest

from allcls_jax.config import Config, DataSource, ModelName
from allcls_jax.models import vgg
from allcls_jax.models.preprocessing import TORCH, Preprocessing
from allcls_jax.models.weight_files import WeightFile, write_safetensors
from allcls_jax.training.network import build


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("of_file", [None, False, True])
def test_the_configuration_alone_says_whether_cells_are_normalised(
    wanted: bool, of_file: bool | None, tmp_path: Path
):
    config = Config()
    config.data.image_size = 32
    config.model.name = ModelName.TINY
    config.model.weights = "random"
    config.model.normalise_stain = wanted
    if of_file is not None:
        stack = vgg.VGG(vgg.conv_stack(ModelName.TINY))
        params = vgg.init_params(vgg.param_shapes(stack, 32), seed=0)
        weights = WeightFile(
            arrays={
                name: np.asarray(array)
                for name, array in vgg.flatten_params(params).items()
            },
            variant=ModelName.TINY,
            preprocessing=Preprocessing("rgb", TORCH.mean, TORCH.scale, of_file),
            source_name="",
            source_sha256="",
        )
        config.model.weights = str(tmp_path / "weights.safetensors")
        write_safetensors(weights, config.model.weights)
    made = build(config, DataSource.SYNTHETIC, cache_dir=tmp_path).preprocessing
    assert made.normalise_stain is wanted
    assert made.channel_order == ("bgr" if of_file is None else "rgb")
