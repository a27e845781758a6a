"""Sweeps: nobody who is tested takes part in the choice, and the ranking is true."""

import copy
import csv
import json
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from allcls_jax.config import Config, ExperimentKind, SplitKind, SyntheticConfig
from allcls_jax.data import partition_file, synthetic
from allcls_jax.errors import InputError
from allcls_jax.evaluation import comparison, predictions
from allcls_jax.experiments import cross_validation, setup, start, sweep, sweep_ranking
from configs import vgg19

BETTER = ("better", ("optim.learning_rate=3e-3", "model.dropout=0"))
BROKEN = ("broken", ('optim.trainable=[["no_such_layer", true]]',))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic cells as a csv: of 30 patients six in a preliminary part."""
    folder = tmp_path_factory.mktemp("cells")
    rows = ["path,label,patient,part,fold"]
    drawn = synthetic.cells(SyntheticConfig(num_images=90, num_patients=30))
    names = list(dict.fromkeys(cell.patient for cell in drawn))
    for cell in drawn:
        (folder / f"{cell.image_id}.png").write_bytes(cell.source.read())
        held_out = names.index(cell.patient) % 15 in (0, 1, 2)
        part, fold = ("prelim", "") if held_out else ("train", cell.fold)
        label = "all" if cell.label else "hem"
        rows.append(f"{cell.image_id}.png,{label},{cell.patient},{part},{fold}")
    (folder / "cells.csv").write_text("\n".join(rows) + "\n")
    return folder


def settings(cells: Path, kind: SplitKind, *candidates: Any) -> Config:
    config = vgg19.get_config("smoke")
    config.cache_dir = str(cells.with_name("cache"))
    config.data.dir = str(cells)
    config.data.split, config.data.test_fold = kind, 1
    config.data.groups = str(cells.with_name("groups.json"))
    config.optim.learning_rate = 1e-9  # learns nothing
    config.train.num_epochs = 1
    config.evaluation.num_resamples = 100
    config.experiment.kind = ExperimentKind.SWEEP
    config.experiment.candidates = candidates
    cells.with_name("groups.json").write_text("[]")
    return config


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(cells: Path) -> tuple[Config, Path]:
    config = settings(cells, SplitKind.OFFICIAL, BROKEN, BETTER)
    config.train.num_epochs = 6
    workdir = cells.with_name("finished")
    start.start(config, workdir)
    return config, workdir


@pytest.mark.parametrize(
    "kind", [SplitKind.OFFICIAL, SplitKind.GROUPED, SplitKind.HELD_OUT]
)
def test_nobody_who_is_tested_or_shares_cells_with_them_takes_part(
    cells, tmp_path, kind
):
    config = settings(cells, kind, BROKEN)
    config.data.num_folds = 3 if kind is SplitKind.OFFICIAL else 2
    data = setup.open_data(config)
    first = data.partition(data.config)
    one, *_, other = np.unique(data.table.patient[first.train]).tolist()
    joined = {min(data.table.patient[first.test].tolist()), one, other}
    config.data.groups = str(tmp_path / "groups.json")
    (tmp_path / "groups.json").write_text(json.dumps([sorted(joined)]))
    # Grouped folds are drawn by these groups, which stand on one side already.
    partition = data.partition(setup.open_data(config).config)
    tested = set(data.table.patient[partition.test].tolist())
    expected = tested | joined if tested & joined else tested

    assert sweep.sweep(config, tmp_path / "run")
    workdir = tmp_path / "run"
    assert set(json.loads((workdir / "left_out.json").read_text())) == expected
    told = read(workdir / "ranking.json")["left_out"]
    assert (told["tested"], told["joined"]) == (len(tested), len(expected - tested))
    assert len(expected - tested) == (0 if kind is SplitKind.GROUPED else 2)
    assert told["images"] == np.isin(data.table.patient, [*expected]).sum()
    runs = [*workdir.glob("*/repeat*")]
    assert len(runs) == config.data.num_folds
    for run in runs:
        rows = partition_file.read(run)
        assert not {row["patient"] for row in rows} & expected
    table = predictions.read(workdir / "base" / "predictions.csv")
    assert not set(table.patient.tolist()) & expected
    rest = (data.table.part == "train") & ~np.isin(data.table.patient, [*expected])
    found = table.of("test").image_id
    assert sorted(found.tolist()) == sorted(data.table.image_id[rest].tolist())
    assert told["rest"]["images"] == rest.sum()


def test_the_better_recipe_wins_and_a_failed_one_is_a_row(finished):
    _, workdir = finished
    rows = read(workdir / "ranking.json")["candidates"]
    assert [(row["rank"], row["name"]) for row in rows] == [
        (1, "better"),
        (2, "base"),
        (None, "broken"),
    ]
    assert "no_such_layer" in rows[2]["reason"]
    assert rows[0]["settings"] == list(BETTER[1])
    assert rows[1]["gain"] is None
    gain = rows[0]["gain"]["auroc"]
    assert 0 < gain["low"] < gain["difference"] < gain["high"]
    text = (workdir / "ranking.md").read_text()
    assert text.index("| better |") < text.index("| base |") < text.index("| broken |")
    assert "broken failed" in text


FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 31138512896 bytes."


def test_a_candidate_too_big_for_the_memory_is_a_row_and_the_rest_goes_on(
    cells, tmp_path, monkeypatch
):
    raised = {
        "device": jax.errors.JaxRuntimeError(f"{FULL} {'big ' * 50}\nBuffers:\n 3 GiB"),
        "host": MemoryError("Unable to allocate 9 GiB"),
        "silent": MemoryError(),
    }
    told = {
        "device": f"JaxRuntimeError: {FULL} big big",
        "host": "MemoryError: Unable to allocate 9 GiB",
        "silent": "MemoryError: out of memory",
    }
    given = [(name, ("model.dropout=0.1",)) for name in raised]
    config = settings(cells, SplitKind.OFFICIAL, *given, BETTER)
    real, held = sweep.cross_validate, []

    class Buffers:
        """What only the garbage collector frees."""

        def __init__(self):
            self.own = self

    def full(recipe: Config, at: Path) -> bool:
        assert not any(one() for one in held)
        if at.name in raised:
            held.append(weakref.ref(Buffers()))
            raise raised[at.name]
        return real(recipe, at)

    monkeypatch.setattr(sweep, "cross_validate", full)
    assert sweep.sweep(config, tmp_path / "run")
    rows = read(tmp_path / "run" / "ranking.json")["candidates"]
    assert [row["rank"] for row in rows] == [1, 2, None, None, None]
    assert {row["name"] for row in rows[:2]} == {"base", "better"}
    assert [row["name"] for row in rows[2:]] == list(raised)
    for row in rows[2:]:
        assert row["reason"].startswith(told[row["name"]])
        assert "\n" not in row["reason"]
        assert len(row["reason"]) < 200


def test_of_several_processes_none_goes_on_alone(cells, tmp_path, monkeypatch):
    def full(recipe: Config, at: Path) -> bool:
        raise MemoryError

    config = settings(cells, SplitKind.OFFICIAL, BETTER)
    monkeypatch.setattr(sweep, "cross_validate", full)
    with pytest.raises(InputError, match="no candidate came to its end: 2 problems"):
        sweep.sweep(config, tmp_path / "one")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(sweep.sharding, "on_first_process", lambda work: work())
    with pytest.raises(MemoryError):
        sweep.sweep(config, tmp_path / "two")


def test_the_figures_are_those_of_the_cross_validations(finished):
    _, workdir = finished
    rows = read(workdir / "ranking.json")["candidates"][:2]
    with (workdir / "ranking.csv").open(newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    for row in rows:
        found = read(workdir / row["name"] / "evaluation.json")
        by_image = found["figures"]["by_image"]
        for name, entry in {
            "auroc": by_image["auroc"],
            "weighted_f1": by_image["weighted_f1"],
            "patient_accuracy": found["figures"]["patients_equal"]["accuracy"],
            "ece": found["calibration"]["after"]["ece"],
            "log_loss": found["calibration"]["after"]["log_loss"],
        }.items():
            for key, column in (("value", ""), ("low", "_low"), ("high", "_high")):
                assert row["figures"][name][key] == entry[key]
                told = table[row["name"]][name + column]
                assert told == ("" if entry[key] is None else str(entry[key]))
        seconds = [
            run["seconds"]
            for run in read(workdir / row["name"] / "results.json")["runs"]
        ]
        assert len(seconds) == 3
        assert row["seconds"] == pytest.approx(sum(seconds), abs=0.06)
    one, other = (
        predictions.read(workdir / name / "predictions.csv")
        for name in ("better", "base")
    )
    expected = comparison.compare(one, other, num_resamples=100)["figures"]
    for name in ("auroc", "weighted_f1"):
        for key, value in rows[0]["gain"][name].items():
            assert value == expected[name][key]


def test_ties_go_to_the_lower_log_loss_and_then_to_the_first():
    def row(name: str, auroc: float, log_loss: float) -> dict:
        return {
            "name": name,
            "figures": {"auroc": {"value": auroc}, "log_loss": {"value": log_loss}},
        }

    rows = [row("a", 0.8, 0.3), row("b", 0.9, 0.5), row("c", 0.9, 0.4)]
    rows += [row("d", 0.9, 0.4)]
    assert [row["name"] for row in sweep_ranking.ranked(rows)] == [*"cdba"]


def test_a_stopped_sweep_goes_on_and_does_nothing_twice(
    finished, tmp_path, monkeypatch
):
    config, whole = finished
    cut, moved = tmp_path / "cut", tmp_path / "moved"
    real = cross_validation.train_and_test
    begun: list[str] = []

    def stopping(runs: Any, setup: Any, at: Path) -> Any:
        begun.append(at.name)
        if at.name == "better":
            raise KeyboardInterrupt
        return real(runs, setup, at)

    with monkeypatch.context() as patched:
        patched.setattr(cross_validation, "train_and_test", stopping)
        with pytest.raises(KeyboardInterrupt):
            sweep.sweep(config, cut)
    assert begun == ["base", "better"]
    assert not (cut / "ranking.csv").exists()
    # On another machine the folder may lie elsewhere.
    cut.rename(moved)
    kept = moved / "base" / "repeat0-fold0-seed0" / "results.json"
    before = kept.stat().st_mtime_ns
    assert sweep.sweep(config, moved)
    assert kept.stat().st_mtime_ns == before
    assert (moved / "ranking.csv").read_bytes() == (whole / "ranking.csv").read_bytes()
    again = copy.deepcopy(config)
    again.experiment.candidates = (BETTER,)
    with pytest.raises(InputError, match=r"experiment\.candidates"):
        sweep.sweep(again, moved)


def test_whom_a_file_names_besides_is_left_out_too(cells, tmp_path):
    config = settings(cells, SplitKind.OFFICIAL, BETTER)
    data = setup.open_data(config)
    partition = data.partition(data.config)
    named = min(data.table.patient[partition.train].tolist())
    (tmp_path / "own.json").write_text(json.dumps([named]))
    config.data.without = str(tmp_path / "own.json")
    names, told = sweep._left_out(setup.open_data(config))
    tested = data.table.patient[partition.test].tolist()
    assert set(names) == {named, *tested}
    assert told["named"] == 1


def test_all_that_is_wrong_with_candidates_is_told_before_anything_is_done(
    cells, tmp_path
):
    config = settings(
        cells,
        SplitKind.OFFICIAL,
        ("base", ()),
        ("twice", ()),
        ("Twice", ()),
        ("a/b", ()),
        ("text", "model.dropout=0.1"),
    )
    with pytest.raises(InputError) as error:
        sweep.sweep(config, tmp_path / "run")
    told = str(error.value)
    assert "4 problems" in told
    for part in ("base: stands there twice", "Twice: stands", "'a/b'", "('text', "):
        assert part in told
    config.experiment.candidates = (
        ("lr", ("optim.learning_rat=1",)),
        ("type", ("model.dropout=wide", "train.num_epochs=2.5")),
        ("range", ("model.dropout=2", "optim.ema=1")),
        ("test", ("data.test_fold=2",)),
        ("seed", ("seed=3",)),
    )
    with pytest.raises(InputError) as error:
        sweep.sweep(config, tmp_path / "run")
    told = str(error.value)
    assert "7 problems" in told
    for part in (
        "lr: optim.learning_rat=1: no such field; did you mean optim.learning_rate?",
        "type: model.dropout = 'wide': must be of type float",
        "type: train.num_epochs = 2.5: must be of type int or None",
        "range: model.dropout = 2.0: must be at least 0 and below 1",
        "range: optim.ema = 1.0",
        "test: data.test_fold=2: who is trained and tested",
        "seed: seed=3: who is trained and tested",
    ):
        assert part in told
    assert not (tmp_path / "run").exists()


def test_a_split_by_image_and_a_sweep_of_nothing_are_refused(cells, tmp_path):
    config = settings(cells, SplitKind.IMAGE)
    with pytest.raises(InputError, match=r"(?s)by image.*nothing to compare"):
        sweep.sweep(config, tmp_path / "run")


def test_too_few_patients_beside_the_tested_are_told_at_once(cells, tmp_path):
    config = settings(cells, SplitKind.GROUPED, BETTER)
    config.data.num_folds, config.data.test_fold = 12, 0
    with pytest.raises(InputError, match=r"12 folds need 12 patients"):
        sweep.sweep(config, tmp_path / "run")
    assert not (tmp_path / "run" / "base").exists()


def test_a_sweep_of_failures_has_no_first(cells, tmp_path):
    config = settings(cells, SplitKind.OFFICIAL, BROKEN)
    config.optim.trainable = (("no_such_layer", True),)
    with pytest.raises(InputError, match=r"no candidate came to its end: 2 problems"):
        sweep.sweep(config, tmp_path / "run")
