"""A run that is stopped at any moment ends as if it had not been."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import psutil
import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] # made by protobuf

from tests.end_to_end import command

EPOCHS = 24
STEPS = 8  # an epoch
FLAGS = (
    *command.TINY,
    "--config.train.batch_size=8",
    f"--config.train.num_epochs={EPOCHS}",
    # Makes the best checkpoint another one than the latest.
    "--config.optim.learning_rate=0.03",
)


def flags(workdir: Path, workers: int) -> tuple[str, ...]:
    return (*FLAGS, f"--workdir={workdir}", f"--config.data.num_workers={workers}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Path:
    """The workdir of a run that nobody disturbed."""
    workdir = folder / "uninterrupted"
    result = command.run(folder, *flags(workdir, 0))
    assert result.returncode == 0, result.stderr
    return workdir


def checkpoints(workdir: Path) -> dict[str, dict[str, bytes]]:
    """The bits of every array of every checkpoint."""
    found = {}
    folder = workdir / "checkpoints"
    assert all(path.name.isdecimal() for path in folder.iterdir()), "nothing else left"
    for path in sorted(folder.iterdir()):
        reader = ocp.PyTreeCheckpointer()
        metadata = reader.metadata(path / "state").item_metadata
        assert metadata is not None
        shapes = metadata.tree
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes
        )
        args = ocp.args.PyTreeRestore(restore_args=as_numpy)
        tree = reader.restore(path / "state", args=args)
        found[path.name] = {
            jax.tree_util.keystr(keys): leaf.tobytes()
            for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
    return found


def lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop_when(
    folder: Path,
    workdir: Path,
    workers: int,
    number: signal.Signals,
    due: Callable[[], bool],
) -> int:
    """Runs until `due`, sends the signal, and returns the exit code.

    Asserts that no process of the run outlives it.
    """
    with subprocess.Popen(
        command.arguments(*flags(workdir, workers)),
        cwd=folder,
        env=command.environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 100
        while process.poll() is None and not due():
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.001)
        assert process.poll() is None, "the run ended before it could be stopped"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= workers
        os.kill(process.pid, number)
        _, stderr = process.communicate(timeout=60)
    alive = psutil.wait_procs(family, timeout=20)[1]
    assert not alive, f"outlived the run: {alive}"
    assert "Traceback" not in stderr.decode()
    return process.returncode


def assert_equal_runs(workdir: Path, reference: Path) -> None:
    names = ("metrics.jsonl", "predictions.csv", "partition.csv", "curves.png")
    for name in names:
        assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name
    found, expected = checkpoints(workdir), checkpoints(reference)
    assert found.keys() == expected.keys()
    assert len(found) == 2, "latest and best"
    for step, arrays in expected.items():
        assert found[step].keys() == arrays.keys()
        for name, bits in arrays.items():
            assert found[step][name] == bits, f"{name} at step {step}"
    assert any("opt_state" in name for name in arrays)
    results = [
        json.loads((path / "results.json").read_text()) for path in (workdir, reference)
    ]
    assert results[0]["test"] == results[1]["test"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_as_an_uninterrupted_one(folder, uninterrupted, workers):
    workdir = folder / f"killed-{workers}"
    rng = random.Random(workers)

    def in_the_middle_of_a_save() -> bool:
        return lines(workdir) >= 3 and any(
            ".orbax-checkpoint-tmp" in path.name
            for path in (workdir / "checkpoints").iterdir()
        )

    def behind_a_few_more_epochs() -> bool:
        if lines(workdir) < before + 2:
            return False
        time.sleep(rng.random() * 0.1)
        return True

    before = lines(workdir)
    stop_when(folder, workdir, workers, signal.SIGKILL, in_the_middle_of_a_save)
    for _ in range(2):
        before = lines(workdir)
        code = stop_when(
            folder, workdir, workers, signal.SIGKILL, behind_a_few_more_epochs
        )
        assert code == -signal.SIGKILL
    assert lines(workdir) < EPOCHS
    result = command.run(folder, *flags(workdir, workers))
    assert result.returncode == 0, result.stderr
    assert "going on behind step" in result.stdout
    assert_equal_runs(workdir, uninterrupted)
    steps = [
        json.loads(line)["step"]
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [STEPS * (i + 1) for i in range(EPOCHS)]
    assert tensorboard_steps(workdir) == steps


def tensorboard_steps(workdir: Path) -> list[int]:
    """The steps of one figure in all event files, read record by record."""
    steps = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            steps += [
                event.step for v in event.summary.value if v.tag == "loss/validation"
            ]
            data = data[16 + length :]
    return steps


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_where_it_is_and_goes_on(folder, uninterrupted, number):
    workdir = folder / f"stopped-{number.name}"
    code = stop_when(folder, workdir, 0, number, lambda: lines(workdir) >= 4)
    assert code == 0
    assert not (workdir / "results.json").exists()
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved >= 4 * STEPS
    result = command.run(folder, *flags(workdir, 0))
    assert result.returncode == 0, result.stderr
    assert f"going on behind step {saved}" in result.stdout
    assert_equal_runs(workdir, uninterrupted)


def test_a_finished_run_started_again_changes_nothing(folder, uninterrupted):
    before = {
        path.name: path.read_bytes()
        for path in uninterrupted.iterdir()
        if path.is_file() and path.name != "results.json"
    }
    assert command.run(folder, *flags(uninterrupted, 0)).returncode == 0
    for name, content in before.items():
        assert (uninterrupted / name).read_bytes() == content, name


def test_a_workdir_of_another_configuration_is_refused(folder, uninterrupted):
    result = command.run(folder, *flags(uninterrupted, 0), "--config.seed=9")
    assert result.returncode == 2
    assert "seed: 0 → 9" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_log_cut_within_a_line_is_mended(folder, uninterrupted, tmp_path):
    """As when a run is killed while it writes."""
    from allcls_jax.training.writers import MetricsLog

    (tmp_path / "metrics.jsonl").write_bytes(
        (uninterrupted / "metrics.jsonl").read_bytes()[:-20]
    )
    with MetricsLog(tmp_path, last_step=STEPS * EPOCHS) as log:
        assert len(log.history) == EPOCHS - 1
    with MetricsLog(tmp_path, last_step=STEPS * 5) as log:
        assert [record["epoch"] for record in log.history] == [1, 2, 3, 4, 5]
    assert lines(tmp_path) == 5
