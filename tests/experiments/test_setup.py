"""What is filled in before a run begins."""

import json

import numpy as np
import pytest

from allcls_jax.config import Config
from allcls_jax.errors import InputError
from allcls_jax.experiments import setup, workdir
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


def test_who_is_left_out_is_gone_before_anything_is_divided(tmp_path):
    config = smoke(tmp_path)
    config.data.limit = 18
    whole = setup.open_data(config)
    one, *_, other = np.unique(whole.table.patient).tolist()
    (tmp_path / "out.json").write_text(json.dumps([one]))
    (tmp_path / "groups.json").write_text(json.dumps([[one, other]]))
    config.data.without = str(tmp_path / "out.json")
    config.data.groups = str(tmp_path / "groups.json")
    data = setup.open_data(config)
    # The others keep the images that they have beside them.
    assert np.array_equal(data.rows, whole.rows[whole.table.patient != one])
    rows = data.partition(data.config).rows()
    assert sum(map(len, rows.values())) == len(data.rows) < 18
    assert config.data.without == str(tmp_path / "out.json"), "left as it is"
    assert str(data.config.data.without).startswith(f"{config.data.without}@sha256:")


def test_a_workdir_knows_whom_it_left_out_wherever_the_file_lies(tmp_path):
    config = smoke(tmp_path)
    names = np.unique(setup.open_data(config).table.patient).tolist()

    def leaving_out(file: str, names: list[str]) -> Config:
        (tmp_path / file).write_text(json.dumps(names))
        config.data.without = str(tmp_path / file)
        return setup.open_data(config).config

    with workdir.claim(tmp_path / "run", leaving_out("one.json", names[:1])):
        pass
    workdir.check(tmp_path / "run", leaving_out("moved.json", names[:1]))
    with pytest.raises(InputError, match=r"data\.without: '@sha256"):
        workdir.check(tmp_path / "run", leaving_out("one.json", names[:2]))


def test_a_warm_up_as_long_as_the_epochs_left_open_is_refused(tmp_path):
    """Five, of synthetic cells; the learning rate would never be reached."""
    config = Config(cache_dir=str(tmp_path))
    config.data.image_size = 32
    config.data.synthetic.num_images = 48
    config.optim.warmup = 8.0
    with pytest.raises(InputError, match=r"optim\.warmup = 8\.0: must be .* fewer"):
        setup.open_data(config)
