"""All networks of a cross-validation on other cells: alone, together, and the cost."""

import copy
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from allcls_jax.config import Config, ExperimentKind, SplitKind, SyntheticConfig
from allcls_jax.data import synthetic
from allcls_jax.errors import InputError
from allcls_jax.evaluation import metrics, predictions
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.experiments import cross_validation, evaluate
from configs import vgg19

NAMES = [f"repeat0-fold{fold}-seed{seed}" for fold in range(2) for seed in range(2)]


def of_config(folder: Path) -> Config:
    config = vgg19.get_config("smoke")
    config.cache_dir = str(folder / "cache")
    config.train.num_epochs = 1
    config.data.synthetic.num_images = 48
    config.data.split = SplitKind.GROUPED
    config.data.num_folds = 2
    config.evaluation.num_resamples = 100
    config.evaluation.views = 8
    config.experiment.kind = ExperimentKind.CROSS_VALIDATION
    config.experiment.num_seeds = 2
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    folder = tmp_path_factory.mktemp("members")
    config = of_config(folder)
    assert cross_validation.cross_validate(config, folder / "cv")
    return config, folder / "cv"


def elsewhere(config: Config) -> Config:
    """The same recipe on cells of other patients, in a folder beside the cache."""
    assert config.cache_dir is not None
    root = Path(config.cache_dir).parent / "cells"
    drawing = SyntheticConfig(num_images=36, num_patients=24, seed=7)
    for cell in synthetic.cells(drawing):
        name = "ALL" if cell.label else "HEM"
        path = root / name / f"other-{cell.patient}" / f"other-{cell.image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cell.source.read())
    other = copy.deepcopy(config)
    other.data.dir = str(root)
    return other


@pytest.fixture(scope="module")
def evaluated(trained: tuple[Config, Path]) -> tuple[dict, Path]:
    config, workdir = trained
    results = evaluate.evaluate(elsewhere(config), workdir)
    (out,) = workdir.glob("evaluation-*")
    return results, out


def predicted(folder: Path) -> Predictions:
    return predictions.read(folder / "predictions.csv").of("test")


def test_each_network_predicts_what_it_predicts_alone(trained, evaluated):
    config, workdir = trained
    _, out = evaluated
    runs = {
        f"repeat{run.repeat}-fold{run.test_fold}-seed{run.seed}": rows
        for run, rows in predicted(out).runs()
    }
    assert set(runs) == set(NAMES)
    evaluate.evaluate(elsewhere(config), workdir / NAMES[1])
    (alone,) = (workdir / NAMES[1]).glob("evaluation-*")
    expected = predicted(alone)
    found = runs[NAMES[1]]
    assert len(found) == 36
    np.testing.assert_array_equal(found.image_id, expected.image_id)
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-6)
    assert not np.allclose(runs[NAMES[0]].probability, found.probability, atol=1e-5)
    # Thresholds and temperature come from each run's own validation images.
    every = predictions.read(out / "predictions.csv").of("validation")
    assert len(list(every.runs())) == 4


def test_the_ensemble_is_the_mean_of_all_folds_and_seeds(evaluated):
    results, out = evaluated
    table = predicted(out)
    with (out / "ensemble.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    for row in rows:
        values = table.probability[table.image_id == row["image_id"]]
        assert len(values) == int(row["members"]) == 4
        assert float(row["probability"]) == pytest.approx(values.mean())
        assert float(row["spread"]) == pytest.approx(values.std(ddof=1))
    together = results["ensemble"]
    assert together["members"] == 4
    expected = metrics.figures(predictions.read(out / "ensemble.csv"))
    assert together["test"] == expected
    assert [run["folder"] for run in results["runs"]] == NAMES
    assert results["data"]["shared_with_training"] == {"images": 0, "patients": 0}


def test_networks_are_summarised_by_mean_and_spread(evaluated):
    results, out = evaluated
    found = json.loads((out / "evaluation.json").read_text())
    assert found["counts"]["runs"] == found["counts"]["passes"] == 4
    scores = [run["test"]["auroc"] for run in results["runs"]]
    assert found["spread"]["auroc"]["mean"] == pytest.approx(np.mean(scores))
    assert found["spread"]["auroc"]["sd"] == pytest.approx(np.std(scores, ddof=1))
    assert found["figures"]["by_image"]["auroc"]["value"] == pytest.approx(
        np.mean(scores)
    )


def test_the_cost_is_measured_and_told(trained, capsys):
    config, workdir = trained
    results = evaluate.evaluate(elsewhere(config), workdir)
    cost = results["ensemble"]["cost"]
    assert results["views"] == 8
    assert cost["passes_per_image"] == 32
    assert cost["images_per_second"] == pytest.approx(36 / cost["seconds"], rel=0.01)
    assert cost["images_per_second_of_one_network"] == pytest.approx(
        4 * cost["images_per_second"], rel=0.01
    )
    ratio = cost["images_per_second_of_one_pass"] / cost["images_per_second"]
    assert cost["times_one_pass"] == pytest.approx(ratio, abs=0.1, rel=0.01)
    assert cost["times_one_pass"] > 2
    said = " ".join(capsys.readouterr().out.split())
    assert "4 networks x 8 views: 32 passes an image, " in said
    assert "Ensemble of 4 networks: " in said


def test_other_views_than_those_of_the_run_are_told_and_not_used(trained, capsys):
    config, workdir = trained
    other = elsewhere(config)
    for views, told in ((8, 0), (1, 1)):
        other.evaluation.views = views
        results = evaluate.evaluate(other, workdir / NAMES[0])
        assert results["views"] == 8
        lines = capsys.readouterr().out.splitlines()
        assert sum("evaluation.views" in line for line in lines) == told
    (line,) = (line for line in lines if "evaluation.views" in line)
    assert line == (
        "evaluation.views = 1 is not used: what was trained was calibrated with 8, and "
        "is evaluated with 8"
    )


def test_cells_that_any_network_was_trained_on_leak(trained):
    config, workdir = trained
    results = evaluate.evaluate(config, workdir)
    shared = results["data"]["shared_with_training"]
    assert shared == {"images": 48, "patients": 24}
    assert results["data"]["leaky"]
    assert any("by one or more of 4 networks" in note for note in results["notes"])
    for run in results["runs"]:
        assert 0 < run["shared_with_training"]["images"] < 48


def test_what_cannot_be_evaluated_is_told(trained, tmp_path):
    config, workdir = trained
    shutil.copytree(
        workdir, tmp_path / "cv", ignore=shutil.ignore_patterns("results.json")
    )
    with pytest.raises(InputError, match="none of its runs is finished"):
        evaluate.evaluate(config, tmp_path / "cv")
    path = tmp_path / "cv" / "config.json"
    ladder = json.loads(path.read_text())
    ladder["experiment"]["kind"] = "leak_ladder"
    path.write_text(json.dumps(ladder))
    with pytest.raises(InputError, match="holds several cross-validations"):
        evaluate.evaluate(config, tmp_path / "cv")
    other = copy.deepcopy(config)
    other.model.normalise_stain = True
    with pytest.raises(InputError, match=r"model\.normalise_stain"):
        evaluate.evaluate(other, workdir)
