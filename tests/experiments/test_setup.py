"""What is filled in before a run begins."""

import pytest

from allcls_jax.errors import InputError
from allcls_jax.experiments import setup
from allcls_jax.training import placement, sharding
from configs import vgg19


def smoke(tmp_path):
    config = vgg19.get_config("smoke")
    config.cache_dir = str(tmp_path)
    config.data.synthetic.num_images = 24
    config.data.synthetic.num_patients = 12
    return config


def test_a_batch_left_open_is_what_fits_the_memory(tmp_path, monkeypatch):
    asked = []

    def fitting(model, image_size, *, learning):
        asked.append((len(model.layers), image_size, learning))
        return 24

    monkeypatch.setattr(placement, "fitting_batch", fitting)
    config = smoke(tmp_path)
    config.train.batch_size = None
    resolved = setup.open_data(config).config
    assert resolved.train.batch_size == 24
    assert asked == [(14, 32, True)]
    assert config.train.batch_size is None, "the given one is left as it is"


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding.jax, "device_count", lambda: 5)
    with pytest.raises(InputError, match=r"train\.batch_size = 32.*give 30"):
        setup.open_data(smoke(tmp_path))
