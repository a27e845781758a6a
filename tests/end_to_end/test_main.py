"""The entry point as a user meets it: outputs, messages, exit codes."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from allcls_jax.config import DataSource, OnBadImage, SyntheticConfig
from allcls_jax.data import packing, synthetic
from tests.end_to_end import command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("main")


@pytest.fixture(scope="module")
def finished(folder: Path):
    """A run with nothing but --config: its workdir and what it said."""
    result = command.run(folder, *command.TINY)
    assert result.returncode == 0, result.stderr
    (workdir,) = (folder / "runs" / "vgg19-smoke").iterdir()
    return workdir, result


def results_of(workdir: Path) -> dict:
    return json.loads((workdir / "results.json").read_text())


def predictions_of(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_all_its_files(finished):
    workdir, _ = finished
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ", workdir.name)
    assert sorted(path.name for path in workdir.iterdir()) == [
        "checkpoints",
        "config.json",
        "confusion_matrix.png",
        "curves.png",
        "evaluation.json",
        "metrics.jsonl",
        "model",
        "partition.csv",
        "predictions.csv",
        "results.json",
        "tensorboard",
    ]
    assert sorted(path.name for path in (workdir / "model").iterdir()) == [
        "check_cells.safetensors",
        "model.json",
        "model.safetensors",
        "model_card.md",
    ]
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(workdir / name) as picture:
            assert min(picture.size) > 400
            assert np.asarray(picture.convert("L")).std() > 10


def test_the_terminal_tells_the_run(finished):
    _, result = finished
    said = result.stdout
    for part in (
        "Cells (synthetic, 32 px)",
        "Partition",
        "block5_pool",
        "dense_3",
        "9,346",
        "4,866",
        "4,480",
        "official fold 2 — synthetic cells — random backbone weights",
        "weighted f1",
        "Research use only. Not a medical device.",
    ):
        assert part in said, part
    assert len(re.findall(r"^epoch +\d/2 ", said, re.MULTILINE)) == 2
    assert not result.stderr, "nothing to complain of"


def test_results_say_what_was_run(finished):
    workdir, _ = finished
    results = results_of(workdir)
    assert results["data"]["source"] == "synthetic"
    assert re.fullmatch("[0-9a-f]{64}", results["data"]["fingerprint"])
    assert results["data"]["counts"]["all"]["images"] == 96
    assert results["data"]["leaky"] is False
    assert results["weights"] == {"source": "random", "file": None, "sha256": None}
    assert results["parameters"] == {"total": 9346, "trainable": 4866, "frozen": 4480}
    assert {"command", "git", "versions", "device", "utc"} <= set(results["provenance"])
    assert "configs/vgg19.py:smoke" in results["provenance"]["command"]
    assert results["notes"] == ["synthetic cells", "random backbone weights"]
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["source"] == "synthetic"
    assert config["train"]["num_epochs"] == 2


def test_figures_are_scikit_learns_over_the_table(finished):
    workdir, _ = finished
    rows = predictions_of(workdir)
    results = results_of(workdir)
    assert list(rows[0]) == [
        "image_id",
        "patient",
        "group",
        "label",
        "probability",
        "part",
        "fold",
        "split",
        "area",
        "repeat",
        "test_fold",
        "seed",
    ]
    assert {row["split"] for row in rows} == {"validation", "test"}
    for split in ("validation", "test"):
        here = [row for row in rows if row["split"] == split]
        label = np.array([int(row["label"]) for row in here])
        probability = np.array([float(row["probability"]) for row in here])
        called = (probability > 0.5).astype(int)
        found = results[split]
        assert found["num_images"] == len(here)
        assert found["num_patients"] == len({row["patient"] for row in here})
        expected = {
            "accuracy": metrics.accuracy_score(label, called),
            "weighted_f1": metrics.f1_score(label, called, average="weighted"),
            "balanced_accuracy": metrics.balanced_accuracy_score(label, called),
            "auroc": metrics.roc_auc_score(label, probability),
            "sensitivity": np.mean(called[label == 1] == 1),
            "specificity": np.mean(called[label == 0] == 0),
        }
        for name, value in expected.items():
            assert found[name] == pytest.approx(value), name
        matrix = [
            [int(np.sum((label == a) & (called == p))) for p in (1, 0)] for a in (1, 0)
        ]
        assert found["confusion_matrix"] == matrix


def test_no_patient_of_the_test_was_trained_on(finished):
    workdir, _ = finished
    with (workdir / "partition.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 96
    seen = {
        use: {row["patient"] for row in rows if row["split"] == use}
        for use in ("train", "validation", "test")
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert {row["fold"] for row in rows if row["split"] == "test"} == {"2"}


def test_the_same_seed_gives_the_same_run_and_another_does_not(folder, finished):
    workdir, _ = finished
    for seed, same in (("0", True), ("1", False)):
        other = folder / f"seed{seed}"
        result = command.run(
            folder, *command.TINY, f"--config.seed={seed}", f"--workdir={other}"
        )
        assert result.returncode == 0, result.stderr
        equal = (other / "predictions.csv").read_bytes() == (
            workdir / "predictions.csv"
        ).read_bytes()
        assert equal == same


def test_a_leaky_split_says_so_everywhere(folder):
    workdir = folder / "leaky"
    result = command.run(
        folder, *command.TINY, "--config.data.split=image", f"--workdir={workdir}"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("leaky: patients shared") >= 3
    results = results_of(workdir)
    assert results["data"]["leaky"] is True
    assert "leaky: patients shared" in results["notes"]


def write_folder(root: Path, seed: int) -> Path:
    """Synthetic cells as class/patient folders."""
    config = SyntheticConfig(num_images=24, num_patients=12, seed=seed)
    for cell in synthetic.cells(config):
        name = "ALL" if cell.label else "HEM"
        path = root / name / f"{seed}-{cell.patient}" / f"{cell.image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cell.source.read())
    return root


def test_a_checkpoint_is_evaluated_on_another_folder(folder, finished, tmp_path):
    workdir, _ = finished
    before = (workdir / "results.json").read_bytes()
    cells = write_folder(tmp_path / "cells", seed=5)
    result = command.run(
        folder,
        *command.TINY,
        "--mode=evaluate",
        f"--workdir={workdir}",
        f"--config.data.dir={cells}",
    )
    assert result.returncode == 0, result.stderr
    (output,) = workdir.glob("evaluation-folder-*")
    results = results_of(output)
    assert results["test"]["num_images"] == 24
    assert results["test"]["num_patients"] == 12
    assert results["data"]["leaky"] is False
    assert results["data"]["source"] == "folder"
    assert results["run"]["source"] == "synthetic"
    assert "trained on synthetic cells" in results["notes"]
    rows = predictions_of(output)
    validation = [row for row in rows if row["split"] == "validation"]
    assert validation == [
        row for row in predictions_of(workdir) if row["split"] == "validation"
    ]
    thresholds = json.loads((output / "evaluation.json").read_text())["thresholds"]
    of_run = json.loads((workdir / "evaluation.json").read_text())["thresholds"]
    assert [t["values"] for t in thresholds] == [t["values"] for t in of_run]
    assert (workdir / "results.json").read_bytes() == before


def test_evaluation_repeats_training_and_finds_what_was_trained_on(folder, finished):
    workdir, _ = finished
    result = command.run(
        folder, *command.TINY, "--mode=evaluate", f"--workdir={workdir}"
    )
    assert result.returncode == 0, result.stderr
    (output,) = workdir.glob("evaluation-synthetic-*")
    again = {row["image_id"]: row["probability"] for row in predictions_of(output)}
    for row in predictions_of(workdir):
        assert float(again[row["image_id"]]) == pytest.approx(
            float(row["probability"]), abs=1e-6
        )
    results = results_of(output)
    assert results["data"]["leaky"] is True
    assert results["data"]["shared_with_training"] == {"images": 64, "patients": 16}
    assert "leaky: patients shared" in results["notes"]
    assert "64 of 96 images were trained or validated on" in results["notes"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--config.data.limit=5",), "24 patients"),
        (("--config.data.dir=nowhere",), "nowhere"),
        (("--mode=evaluate",), "--workdir is missing"),
        (("--mode=evaluate", "--workdir=nowhere"), "nowhere"),
        (("--config.model.weights=nowhere.h5",), "nowhere.h5"),
        ((f"--config.cache_dir={__file__}/cells",), "Not a directory"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_a_remedy(folder, flags, named):
    result = command.run(folder, *command.TINY, *flags)
    assert result.returncode == 2, result.stderr
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")


# Starts the command many times at the price of one start: flags are the process' own,
# so each command line gets a fork of a process that has everything imported.
MANY = """
import builtins, json, os, sys
from allcls_jax import main

cases, answers = json.load(sys.stdin), []
for argv, raised in cases:
    child = os.fork()
    if child == 0:
        os.dup2(os.open("stderr.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
        sys.argv = ["main.py", *argv]
        if raised:
            def dispatch(_):
                name, *arguments = raised
                raise getattr(builtins, name)(*arguments)
            main._dispatch = dispatch
        main.main()
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answers.append([code, open("stderr.txt").read()])
json.dump(answers, sys.stdout)
"""


def run_many(folder: Path, cases: Sequence[tuple[tuple[str, ...], tuple]]) -> list:
    """Returns exit code and stderr of each of (flags, what the run raises, or ())."""
    result = command.python(
        folder, "-c", MANY, text=json.dumps(cases), PYTHONPATH=str(command.ROOT)
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_mistakes_on_the_command_line_are_told_in_one_line(tmp_path):
    cases = [
        ((), "--config is missing"),
        (("--config=nowhere.py",), "nowhere.py"),
        (("--config=",), "there is no file"),
        (("--config", f"{command.ROOT}/configs/vgg19.py:smok"), "smoke"),
        ((*command.TINY, "--config.data.valdation=0.2"), "data.validation"),
        ((*command.TINY, "--config.dta.validation=0.2"), "data.validation"),
        ((*command.TINY, "-config.data.dri=x"), "did you mean --config.data.dir?"),
        ((*command.TINY, "--noconfig.train.cahe_features"), "train.cache_features?"),
        ((*command.TINY, "--config.data[0]=x"), "did you mean --config.data?"),
        ((*command.TINY, "--config.data=x"), "--config.data=x"),
        ((*command.TINY, "--config.data.split=groups"), "official|grouped|image|"),
        ((*command.TINY, "--config.data.limit=many"), "many"),
        ((*command.TINY, "--workdr=x"), "workdr"),
        ((*command.TINY, "surplus"), "surplus"),
    ]
    answers = run_many(tmp_path, [(flags, ()) for flags, _ in cases])
    for (flags, named), (code, stderr) in zip(cases, answers, strict=True):
        assert code == 2, (flags, stderr)
        assert re.fullmatch(r"error: .*\n", stderr), (flags, stderr)
        assert named in stderr, flags


def test_a_bad_configuration_file_is_told_with_its_name_and_the_cause(tmp_path):
    begin = "from allcls_jax.config import Config\nconfig = Config()\n"
    give = "\ndef get_config():\n    return config\n"
    texts = {
        "raises": ("def get_config():\n    raise RuntimeError('too bad')", "too bad"),
        "silent": ("def get_config():\n    raise ValueError", "line 2: ValueError"),
        "syntax": ("def get_config(:", "SyntaxError"),
        "imports": ("import nowhere_to_be_found", "line 1: ModuleNotFoundError"),
        "key": ("def get_config():\n    return {}['x']", "KeyError: 'x'"),
        "none": ("def get_config():\n    pass", "returns None"),
        "without": ("x = 1", "no function get_config"),
        "dict": ("def get_config():\n    return {}", "returns {}"),
        "type": (f"{begin}config.data.image_size = '224'{give}", "image_size = '224'"),
        "field": (f"{begin}config.data.image_sise = 224{give}", "data.image_size?"),
        "section": (f"{begin}config.data = {{}}{give}", "data = {}"),
        "value": (f"{begin}config.data.limit = -1{give}", "data.limit = -1"),
    }
    for name, (text, _) in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    # Overrides make ml_collections look into the configuration before we validate it.
    cases = [
        # Whatever is let through stops for want of a workdir, and trains nothing.
        ((f"--config={name}.py", "--mode=evaluate", *more), ())
        for name in texts
        for more in ((), ("--config.data.test_fold=1",))
    ]
    answers = run_many(tmp_path, cases)
    for ((flag, *_), _), (code, stderr) in zip(cases, answers, strict=True):
        name = flag.removeprefix("--config=").removesuffix(".py")
        assert code == 2, (name, stderr)
        assert stderr.startswith("error: ")
        assert "Traceback" not in stderr
        assert texts[name][1] in stderr
        # A value that breaks a rule may come from a flag as well.
        assert name == "value" or stderr.startswith(f"error: {flag}: "), stderr


def test_what_the_system_refuses_is_told_and_a_defect_keeps_its_traceback(tmp_path):
    cases = [
        (("PermissionError", 13, "Permission denied", "a.txt"), 2),
        (("OSError", 28, "No space left on device"), 2),
        (("OSError", 32, "Broken pipe"), 1),
        (("KeyError", "x"), 1),
        (("ValueError", "a defect"), 1),
    ]
    answers = run_many(tmp_path, [(command.TINY, raised) for raised, _ in cases])
    assert [code for code, _ in answers] == [code for _, code in cases]
    for code, stderr in answers:
        assert ("Traceback" in stderr) == (code == 1)
    assert answers[0][1].startswith("error: a.txt: Permission denied; ")
    assert answers[1][1].startswith("error: a file: No space left on device; make room")


def test_a_real_run_without_weights_stops_with_the_remedy(folder, tmp_path):
    cells = write_folder(tmp_path / "cells", seed=6)
    result = command.run(
        folder,
        *command.TINY,
        f"--config.data.dir={cells}",
        "--config.data.split=grouped",
        "--config.model.weights=imagenet",
        f"--workdir={tmp_path / 'run'}",
    )
    assert result.returncode == 2
    assert "--config.model.weights=" in result.stderr
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_synthetic_run_without_weights_goes_on_and_says_so(folder, tmp_path):
    result = command.run(
        folder,
        *command.TINY,
        "--config.model.weights=imagenet",
        f"--workdir={tmp_path / 'run'}",
    )
    assert result.returncode == 0, result.stderr
    assert "SEEDED RANDOM" in result.stdout
    assert results_of(tmp_path / "run")["weights"]["source"] == "random"


def test_a_loss_that_is_not_finite_stops_with_the_step(folder, tmp_path):
    result = command.run(
        folder,
        *command.TINY,
        "--config.optim.name=sgd",
        "--config.optim.learning_rate=1e38",
        f"--workdir={tmp_path / 'run'}",
    )
    assert result.returncode == 2
    assert re.search(r"loss of step \d+ is (nan|inf)", result.stderr)
    assert "learning_rate" in result.stderr


def test_a_workdir_that_holds_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    result = command.run(folder, *command.TINY, f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert "no run" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_bad_images_stop_a_run_or_are_listed(folder, tmp_path):
    cells = write_folder(tmp_path / "cells", seed=7)
    broken = sorted(cells.rglob("*.png"))[:2]
    for path in broken:
        path.write_bytes(b"broken")
    flags = (
        *command.TINY,
        f"--config.data.dir={cells}",
        "--config.data.split=grouped",
    )
    result = command.run(folder, *flags, f"--workdir={tmp_path / 'a'}")
    assert result.returncode == 2
    for path in broken:
        assert path.name in result.stderr
    result = command.run(
        folder, *flags, "--config.data.on_bad_image=skip", f"--workdir={tmp_path / 'b'}"
    )
    assert result.returncode == 0, result.stderr
    assert "2 images could not be read" in result.stdout
    (listed,) = (folder / "cache" / "cells").glob("folder-*/skipped.txt")
    assert all(path.name in listed.read_text() for path in broken)


def test_help_shows_the_flags_and_imports_nothing_slow(folder):
    result = command.run(folder, "--help")
    assert result.returncode == 0
    assert "--[no]distributed" in result.stdout
    assert "allcls train --config vgg19\n" in result.stdout
    code = "import sys; import allcls_jax.main; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_pack_made_by_the_tool_gives_the_same_run(folder, finished, tmp_path):
    workdir, _ = finished
    config = SyntheticConfig(num_images=96)
    packing.pack(
        synthetic.cells(config),
        tmp_path / "pack",
        source=DataSource.SYNTHETIC,
        size=32,
        crop=None,
        on_bad_image=OnBadImage.ERROR,
    )
    result = command.run(
        folder,
        *command.TINY,
        f"--config.data.dir={tmp_path / 'pack'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert result.returncode == 0, result.stderr
    for name in ("predictions.csv", "metrics.jsonl", "config.json"):
        ours = (tmp_path / "run" / name).read_text()
        theirs = (workdir / name).read_text()
        assert ours.replace(f'"{tmp_path / "pack"}"', "null") == theirs


def test_other_images_of_training_patients_leak_too(folder, tmp_path):
    """Trained on a third of the images, then evaluated on all of them."""
    workdir = tmp_path / "run"
    limited = (*command.TINY, f"--workdir={workdir}", "--config.data.limit=32")
    assert command.run(folder, *limited).returncode == 0
    result = command.run(
        folder, *command.TINY, f"--workdir={workdir}", "--mode=evaluate"
    )
    assert result.returncode == 0, result.stderr
    (output,) = workdir.glob("evaluation-synthetic-*")
    shared = results_of(output)["data"]["shared_with_training"]
    assert shared["images"] < 32
    assert shared["patients"] == 16


def test_a_mistake_leaves_no_workdir_behind(folder, tmp_path):
    workdir = tmp_path / "run"
    flags = (*command.TINY, f"--workdir={workdir}")
    result = command.run(folder, *flags, "--config.optim.trainable=(('.*', False),)")
    assert result.returncode == 2
    assert not workdir.exists()
    assert command.run(folder, *flags).returncode == 0
