"""Cross-validation through the real loop: what is trained, pooled and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from allcls_jax.config import Config, ExperimentKind, SplitKind
from allcls_jax.data import partition_file
from allcls_jax.errors import InputError
from allcls_jax.evaluation import predictions
from allcls_jax.experiments import cross_validation
from configs import vgg19


def tiny(tmp_path: Path, *, seeds: int = 1, repeats: int = 1) -> Config:
    config = vgg19.get_config("smoke")
    config.cache_dir = str(tmp_path / "cache")
    config.train.num_epochs = 1
    config.data.synthetic.num_images = 72
    config.data.split = SplitKind.GROUPED
    config.evaluation.num_resamples = 200
    config.experiment.kind = ExperimentKind.CROSS_VALIDATION
    config.experiment.num_seeds = seeds
    config.experiment.num_repeats = repeats
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    folder = tmp_path_factory.mktemp("cv")
    config = tiny(folder, seeds=2, repeats=2)
    assert cross_validation.cross_validate(config, folder / "run")
    return config, folder / "run"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_every_fold_seed_and_repeat_is_a_run_of_its_own(finished):
    _, workdir = finished
    names = {
        f"repeat{repeat}-fold{fold}-seed{seed}"
        for repeat in range(2)
        for fold in range(3)
        for seed in range(2)
    }
    assert {path.name for path in workdir.iterdir() if path.is_dir()} == names
    for name in names:
        config = read(workdir / name / "config.json")
        assert config["experiment"]["kind"] == "run"
        assert name == (
            f"repeat{config['data']['repeat']}-fold{config['data']['test_fold']}"
            f"-seed{config['seed']}"
        )
    results = read(workdir / "results.json")
    assert {run["folder"] for run in results["runs"]} == names


def test_each_pass_tests_every_image_once(finished):
    _, workdir = finished
    table = predictions.read(workdir / "predictions.csv")
    passes = dict(table.of("test").passes())
    assert len(passes) == 4
    for found in passes.values():
        assert len(np.unique(found.image_id)) == len(found) == 72


def test_no_patient_is_trained_and_tested_on(finished):
    _, workdir = finished
    for run in workdir.glob("repeat*"):
        rows = partition_file.read(run)
        sides = [
            {row["patient"] for row in rows if (row["split"] == "test") == tested}
            for tested in (True, False)
        ]
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == {row["patient"] for row in rows}


def test_seeds_keep_the_test_patients_and_repeats_draw_others(finished):
    _, workdir = finished

    def tested(name: str) -> set[str]:
        rows = partition_file.read(workdir / name)
        return {row["patient"] for row in rows if row["split"] == "test"}

    assert tested("repeat0-fold0-seed0") == tested("repeat0-fold0-seed1")
    folds = [tested(f"repeat1-fold{fold}-seed0") for fold in range(3)]
    assert tested("repeat0-fold0-seed0") not in folds


def test_pooled_figures_are_those_of_the_runs_tables(finished):
    _, workdir = finished
    figures = read(workdir / "evaluation.json")["figures"]["by_image"]
    scores = []
    for repeat in range(2):
        for seed in range(2):
            tables = [
                predictions.read(
                    workdir / f"repeat{repeat}-fold{fold}-seed{seed}/predictions.csv"
                ).of("test")
                for fold in range(3)
            ]
            label = np.concatenate([table.label for table in tables])
            probability = np.concatenate([table.probability for table in tables])
            scores.append(metrics.roc_auc_score(label, probability))
    assert figures["auroc"]["value"] == pytest.approx(np.mean(scores), abs=1e-9)


def test_a_finished_run_is_not_done_again_and_a_missing_one_is(finished):
    config, workdir = finished
    kept = workdir / "repeat0-fold0-seed0" / "results.json"
    lost = workdir / "repeat1-fold2-seed1" / "results.json"
    before = kept.stat().st_mtime_ns
    table = (workdir / "predictions.csv").read_bytes()
    lost.unlink()
    (workdir / "predictions.csv").unlink()
    assert cross_validation.cross_validate(config, workdir)
    assert kept.stat().st_mtime_ns == before
    assert lost.exists()
    assert (workdir / "predictions.csv").read_bytes() == table


def test_a_tampered_partition_is_found_when_runs_are_pooled(finished, tmp_path):
    config, workdir = finished
    path = workdir / "repeat0-fold1-seed0" / "partition.csv"
    before = path.read_text()
    rows = before.splitlines()
    trained = next(row for row in rows if row.endswith("train"))
    try:
        path.write_text("\n".join([*rows, trained[: -len("train")] + "test"]) + "\n")
        with pytest.raises(InputError, match=r"different test images"):
            cross_validation.cross_validate(config, workdir)
    finally:
        path.write_text(before)


def test_given_folds_are_not_drawn_again(tmp_path):
    config = tiny(tmp_path, repeats=2)
    config.data.split = SplitKind.OFFICIAL
    with pytest.raises(InputError, match=r"num_repeats = 2.*'official'.*not drawn"):
        cross_validation.cross_validate(config, tmp_path / "run")
