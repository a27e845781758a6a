"""Cross-validation through the real loop: what is trained, pooled and resumed."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from allcls_jax.config import Config, ExperimentKind, SplitKind
from allcls_jax.data import partition_file
from allcls_jax.errors import InputError
from allcls_jax.evaluation import predictions
from allcls_jax.experiments import cross_validation, evaluate
from allcls_jax.experiments.run import train_and_evaluate
from allcls_jax.training import heads
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


def test_a_run_among_others_is_the_run_alone(finished, tmp_path):
    config, workdir = finished
    name = "repeat1-fold2-seed1"
    alone = tiny(tmp_path)
    alone.experiment.kind = ExperimentKind.RUN
    alone.cache_dir = config.cache_dir
    alone.seed, alone.data.repeat, alone.data.test_fold = 1, 1, 2
    assert train_and_evaluate(alone, tmp_path / "alone") is not None
    found, expected = (
        predictions.read(folder / "predictions.csv")
        for folder in (workdir / name, tmp_path / "alone")
    )
    assert np.array_equal(found.image_id, expected.image_id)
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)
    assert (workdir / name / "partition.csv").read_bytes() == (
        tmp_path / "alone" / "partition.csv"
    ).read_bytes()
    logs = [
        [
            json.loads(line)
            for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]
        ]
        for folder in (workdir / name, tmp_path / "alone")
    ]
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    # And it can be evaluated as that could.
    results = evaluate.evaluate(alone, workdir / name)
    assert (
        results["run"]["step"] == read(workdir / name / "results.json")["best"]["step"]
    )


def test_a_stopped_cross_validation_goes_on_with_all_its_heads(
    finished, tmp_path, monkeypatch
):
    config, _ = finished
    config = copy.deepcopy(config)
    config.train.num_epochs = 4
    config.train.checkpoint_seconds = 0.0
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cross_validation.cross_validate(config, whole)

    real = heads.Heads.conclude

    def stopping(self: heads.Heads, state: Any) -> Any:
        if int(np.ravel(state.step)[0]) >= 2 * self.steps_per_epoch[0]:
            raise KeyboardInterrupt
        return real(self, state)

    with monkeypatch.context() as patched:
        patched.setattr(heads.Heads, "conclude", stopping)
        with pytest.raises(KeyboardInterrupt):
            cross_validation.cross_validate(config, cut)
    assert not list(cut.glob("*/results.json"))
    assert cross_validation.cross_validate(config, cut)
    for name in ("predictions.csv", "ensemble.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert not (cut / "checkpoints").exists(), "each run has its own"


def test_seeds_of_a_fold_are_an_ensemble(finished):
    _, workdir = finished
    with (workdir / "ensemble.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert len(rows) == 2 * 72
    table = predictions.read(workdir / "predictions.csv").of("test")
    for row in rows[::17]:
        same = (table.image_id == row["image_id"]) & (
            table.repeat == int(row["repeat"])
        )
        values = table.probability[same]
        assert len(values) == 2
        assert float(row["probability"]) == pytest.approx(values.mean())
        assert float(row["spread"]) == pytest.approx(values.std(ddof=1))
    together = read(workdir / "results.json")["ensemble"]
    assert together["members"] == 2
    first = [row for row in rows if row["repeat"] == "0"]
    score = metrics.roc_auc_score(
        [int(row["label"]) for row in first],
        [float(row["probability"]) for row in first],
    )
    assert together["test"]["auroc"] == pytest.approx(score)


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
