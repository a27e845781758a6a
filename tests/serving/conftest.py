"""A small trained model, made once for all tests of a process."""

from pathlib import Path

import pytest

from allcls_jax import config_files
from allcls_jax.config_rules import validate
from allcls_jax.experiments import run
from allcls_jax.serving.model import Model, open_model

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "vgg19.py"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `configs/vgg19.py:smoke`, on synthetic cells."""
    folder = tmp_path_factory.mktemp("tiny")
    config = config_files.read_file(f"{CONFIG}:smoke")
    config.cache_dir = str(folder / "cache")
    config.evaluation.num_resamples = 100
    run.train_and_evaluate(validate(config), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_run: Path) -> Path:
    """The model directory of that run."""
    return tiny_run / "model"


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Path) -> Model:
    """That model, opened."""
    return open_model(tiny_model_dir, batch_size=16)
