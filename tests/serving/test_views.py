"""A run that looks at several views is used as it was tested."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from allcls_jax import config_files
from allcls_jax.config import SyntheticConfig
from allcls_jax.config_rules import validate
from allcls_jax.data import synthetic, transforms
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import predictions
from allcls_jax.experiments import run
from allcls_jax.experiments.model_directory import CheckCells
from allcls_jax.serving.explanation import attribution
from allcls_jax.serving.explanation.job import Options, explain
from allcls_jax.serving.explanation.settings import Settings
from allcls_jax.serving.export import FORMATS, export
from allcls_jax.serving.exports import to_safetensors
from allcls_jax.serving.model import Model, open_model
from tests.serving.conftest import CONFIG

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

CELLS = {
    cell.image_id: cell for cell in synthetic.cells(SyntheticConfig(num_images=96))
}


def train(folder: Path, cache: Path, **settings: Any) -> Path:
    config = config_files.read_file(f"{CONFIG}:smoke")
    config.cache_dir = str(cache)
    config.evaluation.num_resamples = 100
    config.evaluation.views = settings.pop("views")
    for name, value in settings.items():
        setattr(config.train, name, value)
    run.train_and_evaluate(validate(config), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("views")
    return train(made / "run", made / "cache", views=8)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return open_model(folder, batch_size=16)


def with_views(model: Model, views: int) -> Model:
    """The same parameters with other views, and check cells to match."""
    made = copy.copy(model)
    made.classifier = dataclasses.replace(model.classifier, views=views)
    images, params = jnp.asarray(model.check.images), model.classifier.params
    outputs = jax.jit(made.classifier.plain)(images, params)
    made.check = CheckCells(model.check.images, *map(np.asarray, outputs))
    return made


def test_the_run_and_its_model_say_how_many_views(folder: Path, model: Model):
    assert json.loads((folder / "results.json").read_text())["views"] == 8
    assert model.record["model"]["views"] == model.classifier.views == 8
    assert "8 views of an image" in (folder / "model" / "model_card.md").read_text()
    assert model.self_check() < 1e-4


def test_a_model_gives_what_the_run_wrote_for_each_test_image(
    folder: Path, model: Model
):
    table = predictions.read(folder / "predictions.csv").of(Split.TEST)
    images = np.stack(
        [model.read(CELLS[i].source.read(), name=i).image for i in table.image_id]
    )
    odds = special.logit(table.probability) / model.classifier.temperature
    np.testing.assert_allclose(
        model.probabilities(images), special.expit(odds), atol=1e-4
    )
    single = with_views(model, 1).classifier
    other = np.asarray(single.log_odds(single.logits(images)))
    assert np.abs(other - odds).max() > 1e-3, "one view must say something else"


def test_kept_features_give_what_the_whole_network_gives(folder: Path, tmp_path: Path):
    cache = folder.parent / "cache"
    direct = train(tmp_path / "run", cache, views=8, cache_features=False)
    found, expected = (
        predictions.read(at / "predictions.csv") for at in (folder, direct)
    )
    np.testing.assert_array_equal(found.image_id, expected.image_id)
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)


def test_validation_between_epochs_looks_at_one_view(folder: Path, tmp_path: Path):
    one = train(tmp_path / "run", folder.parent / "cache", views=1)
    logs = [
        [json.loads(line) for line in (at / "metrics.jsonl").read_text().splitlines()]
        for at in (one, folder)
    ]
    for single, several in zip(*logs, strict=True):
        assert single == pytest.approx(several, rel=1e-6)
    tables = [predictions.read(at / "predictions.csv") for at in (one, folder)]
    assert not np.allclose(tables[0].probability, tables[1].probability, atol=1e-5)


def test_other_angles_are_looked_at_by_the_whole_network(folder: Path, tmp_path: Path):
    many = train(tmp_path / "run", folder.parent / "cache", views=16)
    opened = open_model(many, batch_size=16)
    table = predictions.read(many / "predictions.csv").of(Split.TEST)
    image = opened.read(CELLS[table.image_id[0]].source.read(), name="x").image
    odds = special.logit(table.probability[0]) / opened.classifier.temperature
    found = opened.probabilities(image[None])[0]
    assert found == pytest.approx(special.expit(odds), abs=1e-4)


def test_a_wrong_number_of_views_is_damage(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    record = json.loads(path.read_text())
    record["model"]["views"] = 3
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"damaged .*views = 3: must be 1"):
        open_model(tmp_path / "model")


@pytest.mark.parametrize("name", FORMATS)
def test_exports_pass_their_check_on_all_views(name: str, model: Model, tmp_path: Path):
    out = tmp_path / f"model{FORMATS[name].suffix}"
    found = export(model, name, out)
    for difference in found["check"]["platforms"]["cpu"].values():
        assert difference <= 1e-5
    assert found["views"] == 8
    if name == "safetensors":
        assert to_safetensors.read(out).views == 8


@pytest.mark.parametrize("name", ["onnx", "keras"])
def test_formats_without_other_angles_name_the_one_that_has(
    name: str, model: Model, tmp_path: Path
):
    many = with_views(model, 16)
    with pytest.raises(InputError, match=r"16 views .*--format stablehlo"):
        export(many, name, tmp_path / f"m{FORMATS[name].suffix}")
    assert not list(tmp_path.iterdir())


def test_stablehlo_has_other_angles(model: Model, tmp_path: Path):
    many = with_views(model, 16)
    found = export(many, "stablehlo", tmp_path / "m.stablehlo")
    assert found["check"]["platforms"]["cpu"]["logits"] <= 1e-5


def test_what_is_explained_is_one_view_and_says_so(model: Model, tmp_path: Path):
    image = model.check.images[0]
    path = tmp_path / "cell.png"
    path.write_bytes(transforms.encode_png(image))
    options = Options(settings=Settings(), sanity_images=0)
    record = explain(model, [str(path)], tmp_path / "out", options)
    assert record["explained"].endswith(
        "of the picture as it is; probabilities are of 8 views of it"
    )
    (row,) = record["images"]
    seen = model.read(path.read_bytes(), name="x").image[None]
    single = with_views(model, 1).classifier
    odds = float(single.log_odds(single.logits(seen))[0])
    assert row["log_odds"] == pytest.approx(odds, abs=1e-4)
    assert row["probability"] == pytest.approx(model.probabilities(seen)[0], abs=1e-6)
    # The class that the cell is called is that of all views.
    found = attribution.log_odds_of(model.classifier, seen)
    assert special.expit(found) == pytest.approx(row["probability"], abs=1e-5)
    assert abs(found[0] - odds) > 1e-4
