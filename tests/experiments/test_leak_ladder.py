"""The ladder of leaks, climbed on cells whose leak is known because it was planted."""

import json
from pathlib import Path

import pytest

from allcls_jax.config import Config, ExperimentKind
from allcls_jax.evaluation import predictions
from allcls_jax.experiments import leak_ladder
from configs import vgg19

EFFECTS = (0.0, 0.5, 1.0)
RUNGS = ["grouped", "official", "image", "image_copies"]


def settings(cache: Path, effect: float) -> Config:
    """A small network that learns patients by heart where it can."""
    config = vgg19.get_config("smoke")
    config.experiment.kind = ExperimentKind.LEAK_LADDER
    config.experiment.num_seeds = 4  # one alone may be lucky
    config.cache_dir = str(cache)
    config.data.image_size = 64
    config.data.synthetic.num_images = 360
    config.data.synthetic.num_patients = 12
    config.data.synthetic.all_share = 2 / 3
    config.data.synthetic.patient_effect = effect
    config.model.dropout = 0.0
    config.optim.learning_rate = 3e-3
    config.train.batch_size = 4
    config.train.num_epochs = 6
    config.evaluation.num_resamples = 200
    return config


def climb(folder: Path, effect: float) -> dict:
    workdir = folder / f"effect-{effect}"
    assert leak_ladder.climb(settings(folder / "cache", effect), workdir)
    return json.loads((workdir / "ladder.json").read_text())


@pytest.fixture(scope="module")
def ladders(tmp_path_factory: pytest.TempPathFactory) -> dict[float, dict]:
    folder = tmp_path_factory.mktemp("ladder")
    return {effect: climb(folder, effect) for effect in EFFECTS}


def gained(ladder: dict, rung: str, figure: str = "auroc") -> float:
    """Points of a figure above the honest rung."""
    reached = {
        each["key"]: each["figures"]["by_image"][figure]["value"]
        for each in ladder["rungs"]
    }
    return reached[rung] - reached["grouped"]


@pytest.mark.parametrize("rung", ["image", "image_copies"])
def test_inflation_rises_with_the_planted_effect_and_is_nil_without(ladders, rung):
    none, some, full = (gained(ladders[effect], rung) for effect in EFFECTS)
    assert abs(none) < 0.03
    assert none < some < full
    assert full > 0.06


def test_each_rung_tests_what_it_says(ladders):
    for ladder in ladders.values():
        rungs = {rung["key"]: rung for rung in ladder["rungs"]}
        assert list(rungs) == RUNGS
        assert [rung["leaky"] for rung in rungs.values()] == [False, False, True, True]
        # 240 ALL and 120 HEM; as many copies as balance them.
        assert [rungs[key]["images"] for key in RUNGS] == [360, 360, 360, 480]
        notes = rungs["image_copies"]["notes"]
        assert any("turned copies" in note for note in notes)
        assert any("twin that was trained on" in note for note in notes)
        assert ladder["notes"] == ["synthetic cells", "random backbone weights"]


def test_gains_are_paired_over_the_images_that_both_have(ladders):
    for rung in ladders[1.0]["rungs"][1:]:
        gain = rung["gain"]
        assert gain["images"] == 360
        figure = gain["figures"]["auroc"]
        assert figure["low"] < figure["difference"] < figure["high"]
        if rung["key"] != "image_copies":
            expected = gained(ladders[1.0], rung["key"])
            assert figure["difference"] == pytest.approx(expected, abs=1e-9)


def test_what_the_leaks_explain_adds_up_to_the_paper_s_lead(ladders):
    for ladder in ladders.values():
        steps = ladder["explained"]
        honest = ladder["rungs"][0]["figures"]["by_image"]["balanced_accuracy"]["value"]
        assert [step["step"] for step in steps[:-1]] == [
            rung["title"] for rung in ladder["rungs"][1:]
        ]
        assert sum(step["gain"] for step in steps) == pytest.approx(0.9919 - honest)
        assert sum(step["share"] for step in steps) == pytest.approx(1)


def test_copies_and_a_rung_without_its_data_are_left_out(tmp_path):
    config = settings(tmp_path / "cache", 0.5)
    config.experiment.num_seeds = 1
    config.data.image_size = 32
    config.data.synthetic.num_images = 48
    config.data.synthetic.all_share = 0.5
    config.train.num_epochs = 1
    assert leak_ladder.climb(config, tmp_path / "run")
    ladder = json.loads((tmp_path / "run" / "ladder.json").read_text())
    assert [rung["key"] for rung in ladder["rungs"]] == RUNGS[:-1]
    table = predictions.read(tmp_path / "run" / "image" / "predictions.csv")
    assert len(table.of("test")) == 48
