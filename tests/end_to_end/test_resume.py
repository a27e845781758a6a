"""A run that is stopped at any moment ends as if it had not been."""

import json
import os
import random
import shutil
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
    # Makes the best epoch another one than the latest.
    "--config.optim.learning_rate=0.01",
    "--config.train.checkpoint_seconds=0",
)

# The whole network in each step, on images that are read from disk, with all that
# fine-tuning has: what is drawn, scheduled and averaged must go on where it stopped.
WHOLE = (
    "--config.train.keep=disk",
    "--config.optim.trainable="
    '(("block[12].*", False), ("block.*", 0.1), ("dense.*", True))',
    "--config.optim.name=adamw",
    "--config.optim.weight_decay=0.01",
    "--config.optim.clip_norm=1.0",
    "--config.optim.schedule=cosine",
    "--config.optim.warmup=1.5",
    "--config.optim.ema=0.9",
    "--config.train.label_smoothing=0.1",
    "--config.train.mixup=0.4",
    "--config.train.sampling=patients",
    f"--config.train.patience={EPOCHS}",
    "--config.augment.dihedral=true",
    "--config.augment.rotation=180",
    "--config.augment.stain=0.2",
)


def flags(workdir: Path, workers: int) -> tuple[str, ...]:
    """Workers read images: without any, heads are trained on kept features."""
    whole = WHOLE if workers else ()
    return (
        *FLAGS,
        *whole,
        f"--workdir={workdir}",
        f"--config.data.num_workers={workers}",
    )


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


@pytest.fixture(scope="module")
def whole_uninterrupted(folder: Path) -> Path:
    """The same of the whole network, its images read in threads."""
    workdir = folder / "whole"
    result = command.run(folder, *FLAGS, *WHOLE, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.fixture
def reference(request: pytest.FixtureRequest, workers: int) -> Path:
    """What a run with so many workers must end as."""
    name = "whole_uninterrupted" if workers else "uninterrupted"
    return request.getfixturevalue(name)


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
    *,
    group: bool = False,
    cache: Path | None = None,
) -> int:
    """Runs until `due`, sends the signal, and returns the exit code.

    Asserts that no process of the run outlives it. With `group`, its workers get the
    signal too, as from a terminal's Ctrl-C.
    """
    with subprocess.Popen(
        command.arguments(*flags(workdir, workers)),
        cwd=folder,
        env=command.environment(
            folder, ALLCLS_CACHE_DIR=str(cache or folder / "cache")
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 100
        while process.poll() is None and not due():
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.001)
        assert process.poll() is None, "the run ended before it could be stopped"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= workers
        (os.killpg if group else os.kill)(process.pid, number)
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
    assert len(found) == 1, "the newest"
    for step, arrays in expected.items():
        assert found[step].keys() == arrays.keys()
        for name, bits in arrays.items():
            assert found[step][name] == bits, f"{name} at step {step}"
    for part in ("opt_state", "best"):
        assert any(part in name for name in arrays)
    results = [
        json.loads((path / "results.json").read_text()) for path in (workdir, reference)
    ]
    assert results[0]["test"] == results[1]["test"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_as_an_uninterrupted_one(folder, reference, workers):
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
    assert_equal_runs(workdir, reference)
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


@pytest.mark.parametrize("place", ["cells", "features"])
def test_a_run_killed_while_it_prepares_starts_anew(
    folder, uninterrupted, tmp_path, place
):
    """With an empty cache: within packing, or within the features of the backbone."""
    workdir, cache = tmp_path / "run", tmp_path / "cache"

    def begun() -> bool:
        return (cache / place).is_dir() and any((cache / place).iterdir())

    stop_when(folder, workdir, 0, signal.SIGKILL, begun, cache=cache)
    assert not workdir.exists()
    result = command.run(folder, *flags(workdir, 0), ALLCLS_CACHE_DIR=str(cache))
    assert result.returncode == 0, result.stderr
    assert_equal_runs(workdir, uninterrupted)
    left = [path.name for path in (cache / "cells").iterdir() if path.is_dir()]
    assert len(left) == 1, "no debris"


def test_two_runs_do_not_share_a_workdir(folder, uninterrupted):
    workdir = folder / "shared"

    def second_is_refused() -> bool:
        if lines(workdir) < 1:
            return False
        result = command.run(folder, *flags(workdir, 0))
        assert result.returncode == 2
        assert "another run is at work there" in result.stderr
        return True

    # Held in the middle of its work, or it would be done before the second begins.
    with subprocess.Popen(
        command.arguments(*flags(workdir, 0)),
        cwd=folder,
        env=command.environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        while lines(workdir) < 1:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        try:
            assert second_is_refused()
        finally:
            process.send_signal(signal.SIGCONT)  # or nobody would see the test fail
        assert process.wait(timeout=100) == 0
    assert_equal_runs(workdir, uninterrupted)


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGINT, 2)],
)
def test_a_stopped_run_saves_where_it_is_and_goes_on(
    folder, reference, number, workers
):
    workdir = folder / f"stopped-{number.name}-{workers}"
    code = stop_when(
        folder, workdir, workers, number, lambda: lines(workdir) >= 4, group=True
    )
    assert code == 0
    assert not (workdir / "results.json").exists()
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved >= 4 * STEPS
    result = command.run(folder, *flags(workdir, workers))
    assert result.returncode == 0, result.stderr
    assert f"going on behind step {saved}" in result.stdout
    assert_equal_runs(workdir, reference)


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


def copy_of(uninterrupted: Path, folder: Path) -> Path:
    return Path(shutil.copytree(uninterrupted, folder / "copy"))


def test_a_damaged_checkpoint_is_named(folder, uninterrupted, tmp_path):
    workdir = copy_of(uninterrupted, tmp_path)
    for path in (workdir / "checkpoints").rglob("manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:10])
    result = command.run(folder, *flags(workdir, 0))
    assert result.returncode == 2
    # Threads of orbax may have their say before and after.
    lines = result.stderr.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert f"checkpoints/{STEPS * EPOCHS}: the checkpoint cannot be read" in error
    assert "remove this folder" in error


@pytest.mark.parametrize(
    ("damage", "named"),
    [("{}\n", "damaged"), ("what\n", "damaged"), ("", "has 0 epochs")],
)
def test_a_damaged_log_is_named(folder, uninterrupted, tmp_path, damage, named):
    workdir = copy_of(uninterrupted, tmp_path)
    (workdir / "metrics.jsonl").write_text(damage)
    result = command.run(folder, *flags(workdir, 0))
    assert result.returncode == 2
    assert named in result.stderr
    assert "Traceback" not in result.stderr


def test_a_checkpoint_within_the_first_epoch_is_not_evaluated(tmp_path):
    """It was never validated, so nothing says that it is the best."""
    from allcls_jax.errors import InputError
    from allcls_jax.training.checkpoint import Checkpoints
    from allcls_jax.training.state import Best, TrainState, zero_sums

    number = jax.numpy.zeros((), jax.numpy.int32)
    params = {"dense": {"kernel": jax.numpy.ones(3)}}
    best = Best(params=params, loss=jax.numpy.full((), jax.numpy.inf), step=number)
    state = TrainState(
        step=number,
        params=params,
        opt_state=(),
        average=None,
        sums=zero_sums(),
        best=best,
    )
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(InputError, match="no checkpoint"):
            checkpoints.record()
        checkpoints.save(5, state, {"steps": 5})
        checkpoints.wait()
        assert checkpoints.record() == {"steps": 5}
        with pytest.raises(InputError, match="no checkpoint"):
            checkpoints.restore_best(best)
        validated = best.replace(loss=jax.numpy.full((), 0.5))
        checkpoints.save(8, state.replace(best=validated), {"steps": 8})
        checkpoints.wait()
        assert float(checkpoints.restore_best(best).loss) == 0.5


def test_checkpoints_are_as_far_apart_as_asked_and_the_last_state_is_saved(
    folder, uninterrupted, tmp_path
):
    workdir = tmp_path / "seldom"
    apart = "--config.train.checkpoint_seconds=3600"
    result = command.run(folder, *flags(workdir, 0), apart)
    assert result.returncode == 0, result.stderr
    assert_equal_runs(workdir, uninterrupted)
