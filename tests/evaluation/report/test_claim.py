import json
import re

import pytest

from allcls_jax import DISCLAIMER
from allcls_jax.config import (
    AugmentConfig,
    Config,
    OptimConfig,
    OptimizerName,
    Sampling,
    Schedule,
    TrainConfig,
)
from allcls_jax.evaluation.report import claim
from allcls_jax.evaluation.report.answers import NOT_AVAILABLE, answers
from allcls_jax.evaluation.report.record import read
from tests.evaluation import report_folders


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory):
    return report_folders.write_run(tmp_path_factory.mktemp("claim") / "run")


def rows(text: str) -> list[list[str]]:
    """The cells of every row of the tables, headers left out."""
    lines = [line for line in text.splitlines() if re.match(r"\| [\d–]+ \|", line)]
    lines = [line for line in lines if not line.startswith("| 2020")]
    return [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines]


def test_every_item_of_both_versions_is_there_once():
    old = sorted(item.old for item in claim.items() if item.old)
    new = sorted(item.new for item in claim.items() if item.new)
    assert old == list(range(1, 43))
    assert new == list(range(1, 45))
    assert all(item.old or item.new for item in claim.items())


def test_every_item_has_an_answer_in_the_document(workdir):
    found = rows(claim.render(read(workdir)))
    assert len(found) == len(list(claim.items()))
    assert all(len(row) == 4 and row[3].strip() for row in found)


def test_what_no_record_holds_is_not_available(workdir):
    answer = {row[1]: row[3] for row in rows(claim.render(read(workdir)))}
    for number in ("4", "8", "11", "13", "18", "31", "34", "44"):
        assert answer[number] == NOT_AVAILABLE
    assert answer["33"].startswith(NOT_AVAILABLE)


def test_answers_are_those_of_the_record(workdir):
    answer = {row[1]: row[3] for row in rows(claim.render(read(workdir)))}
    entry = json.loads((workdir / "evaluation.json").read_text())
    auroc = entry["figures"]["by_image"]["auroc"]
    assert f"AUROC {auroc['value']:.3f} ({auroc['low']:.3f}–" in answer["38"]
    assert "Retrospective" in answer["5"]
    assert "26,447,682 total" in answer["22"]
    assert "folds drawn by group of patients" in answer["19"]
    assert answer["20"].startswith("Patient")
    assert "learning rate 0.0001" in answer["25"]


def test_that_cells_were_normalised_is_told(tmp_path):
    run = report_folders.write_run(tmp_path / "run")
    assert "standard cell" not in answers(read(run))["preprocessing"]
    results = json.loads((run / "results.json").read_text())
    results["preprocessing"]["normalise_stain"] = True
    (run / "results.json").write_text(json.dumps(results))
    assert "of a standard cell; channels" in answers(read(run))["preprocessing"]


def test_how_images_were_varied_is_told(tmp_path, workdir):
    plain = answers(read(workdir))["training"]
    assert "augmentation: none" in plain
    settings = report_folders.config()
    settings.augment = AugmentConfig(dihedral=True, rotation=15.0, stain=0.125)
    varied = report_folders.write_run(tmp_path / "run", settings=settings)
    told = answers(read(varied))["training"]
    assert "8 flips and quarter turns, rotation by up to 15 degrees" in told
    assert "haematoxylin and eosin by up to 12.5%;" in told
    assert "zoom" not in told
    # Of a run by an older version.
    kept = json.loads((varied / "config.json").read_text())
    del kept["augment"]
    (varied / "config.json").write_text(json.dumps(kept))
    assert "augmentation: none" in answers(read(varied))["training"]


def fine_tuned() -> Config:
    settings = report_folders.config()
    settings.model.normalise_stain = True
    settings.optim = OptimConfig(
        name=OptimizerName.ADAMW,
        learning_rate=3e-4,
        schedule=Schedule.COSINE,
        warmup=1.0,
        weight_decay=0.05,
        clip_norm=1.0,
        ema=0.99,
        trainable=(("block[12].*", False), ("block.*", 0.1), ("dense.*", True)),
    )
    settings.train = TrainConfig(
        num_epochs=12,
        patience=4,
        sampling=Sampling.CLASSES,
        label_smoothing=0.05,
        mixup=0.2,
    )
    return settings


def test_all_that_a_recipe_sets_for_training_is_told(tmp_path):
    settings = fine_tuned()
    told = answers(read(report_folders.write_run(tmp_path / "a", settings=settings)))
    assert told["training"].startswith(
        "adamw, learning rate 0.0003 after 1 epoch of warm-up, then a cosine, weight "
        "decay 0.05, gradients clipped at 1, running mean of parameters 0.99, batch "
        "32, up to 12 epochs (stops after 4 without a lower validation loss), class "
        "weights none, classes shown as often, label smoothing 0.05, mixup 0.2, "
        "augmentation: none; stain of each cell normalised; trainable: block.* at 0.1 "
        "of the learning rate, dense.*; models trained: 1; "
    )
    settings.optim.warmup = 0.0
    settings.train.sampling = Sampling.PATIENTS
    told = answers(read(report_folders.write_run(tmp_path / "b", settings=settings)))
    assert "learning rate 0.0003, falling as a cosine, weight" in told["training"]
    assert "classes shown as often, and patients within them," in told["training"]
    settings.optim.warmup, settings.optim.schedule = 2.5, Schedule.CONSTANT
    told = answers(read(report_folders.write_run(tmp_path / "c", settings=settings)))
    assert "after 2.5 epochs of warm-up, weight decay" in told["training"]


def test_what_a_recipe_leaves_as_it_is_is_not_told_nor_asked_of_older_runs(tmp_path):
    expected = (
        "adam, learning rate 0.0001, batch 32, 20 epochs, class weights none, "
        "augmentation: none; trainable: (dense|standardise)_\\d+/.*; models trained: "
        "1; "
    )
    run = report_folders.write_run(tmp_path / "run")
    assert answers(read(run))["training"].startswith(expected)
    kept = json.loads((run / "config.json").read_text())
    del kept["augment"], kept["model"]["normalise_stain"]
    for name in ("schedule", "warmup", "weight_decay", "clip_norm", "ema"):
        del kept["optim"][name]
    for name in ("patience", "sampling", "label_smoothing", "mixup"):
        del kept["train"][name]
    (run / "config.json").write_text(json.dumps(kept))
    assert answers(read(run))["training"].startswith(expected)


def test_an_ensemble_is_told_beside_the_single_networks(workdir):
    assert answers(read(workdir))["ensembling"].startswith("No ensemble")
    results = json.loads((workdir / "results.json").read_text())
    results["ensemble"] = {
        "members": 3,
        "test": {"weighted_f1": 0.8125, "auroc": None},
        "mean_spread": 0.0421,
    }
    before = (workdir / "results.json").read_text()
    try:
        (workdir / "results.json").write_text(json.dumps(results))
        told = answers(read(workdir))["ensembling"]
    finally:
        (workdir / "results.json").write_text(before)
    assert "mean of 3 networks of each fold: weighted F1 0.81" in told
    assert "spread by 0.042" in told
    assert "AUROC" not in told


def test_a_leaky_split_is_answered_as_one(tmp_path):
    settings = report_folders.config(split="image")
    workdir = report_folders.write_run(tmp_path / "run", settings=settings)
    results = json.loads((workdir / "results.json").read_text())
    results["data"]["leaky"] = True
    (workdir / "results.json").write_text(json.dumps(results))
    answer = {row[1]: row[3] for row in rows(claim.render(read(workdir)))}
    assert "patients stand on both sides" in answer["20"]


def test_an_empty_record_answers_nothing_that_it_does_not_know(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    told = answers(read(tmp_path))
    known = {name for name, text in told.items() if not text.startswith(NOT_AVAILABLE)}
    # What this package does with every run, and what it says of every page.
    assert known == {"disclaimer", "kind", "selection"}
    text = claim.render(read(tmp_path))
    assert DISCLAIMER in text
    assert "Retrospective" not in text
