"""Eight devices, and two processes, train as one device does."""

import csv
import json
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end import command

# 13 epochs of 8 steps: 104 in all.
FLAGS = (
    *command.TINY,
    "--config.train.batch_size=8",
    "--config.train.num_epochs=13",
    "--config.optim.learning_rate=0.001",
    # Images that lie on one device are mixed with those of another.
    "--config.train.mixup=0.4",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def one_device(folder: Path) -> Path:
    return train(folder, "one")


def train(folder: Path, name: str, **variables: str) -> Path:
    workdir = folder / name
    # The whole network in each step, not only its head on kept features.
    whole = "--config.train.cache_features=false"
    result = command.run(folder, *FLAGS, whole, f"--workdir={workdir}", **variables)
    assert result.returncode == 0, result.stderr
    return workdir


def history(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def results(workdir: Path) -> dict:
    return json.loads((workdir / "results.json").read_text())


def probabilities(workdir: Path) -> list[float]:
    with (workdir / "predictions.csv").open(newline="") as file:
        return [float(row["probability"]) for row in csv.DictReader(file)]


def assert_same_training(workdir: Path, reference: Path) -> None:
    found, expected = history(workdir), history(reference)
    assert expected[-1]["step"] >= 100
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-5, err_msg=name)
    for use in ("validation", "test"):
        np.testing.assert_allclose(
            results(workdir)[use]["auroc"], results(reference)[use]["auroc"], atol=1e-5
        )
    np.testing.assert_allclose(
        probabilities(workdir), probabilities(reference), atol=1e-5
    )


def test_eight_devices_train_as_one(folder, one_device):
    workdir = train(folder, "eight", JAX_NUM_CPU_DEVICES="8")
    assert results(workdir)["provenance"]["device"]["count"] == 8
    assert results(one_device)["provenance"]["device"]["count"] == 1
    assert_same_training(workdir, one_device)


def test_heads_divided_among_eight_devices_are_those_of_one(folder):
    """Nine heads: seven places stay empty."""
    tables = []
    for devices in ("1", "8"):
        workdir = folder / f"heads-{devices}"
        result = command.run(
            folder,
            *FLAGS,
            "--config.experiment.kind=cross_validation",
            "--config.experiment.num_seeds=3",
            f"--workdir={workdir}",
            JAX_NUM_CPU_DEVICES=devices,
        )
        assert result.returncode == 0, result.stderr
        assert "training 9 of 9 runs" in result.stdout
        tables.append(probabilities(workdir))
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-5)


def run_two(
    folder: Path, *flags: str, stop_at: Path | None = None
) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of the two processes of one run.

    The second gets a SIGTERM when the file `stop_at` is there.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            command.arguments(
                *flags,
                "--distributed",
                f"--coordinator=127.0.0.1:{port}",
                "--num_processes=2",
                f"--process_id={i}",
            ),
            cwd=folder,
            env=command.environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        if stop_at is not None:
            while not stop_at.exists():
                assert all(process.poll() is None for process in processes)
                time.sleep(0.01)
            processes[1].terminate()
        outputs = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def test_two_processes_train_as_one(folder, one_device, tmp_path):
    """From an empty cache, which the first process fills; and on kept features."""
    workdir = folder / "two"
    finished = run_two(tmp_path, *FLAGS, f"--workdir={workdir}")
    for code, _, stderr in finished:
        assert code == 0, stderr
    told = "Test: official fold 2"
    assert told in finished[0][1]
    assert told not in finished[1][1], "only the first process speaks"
    device = results(workdir)["provenance"]["device"]
    assert (device["count"], device["processes"]) == (2, 2)
    assert_same_training(workdir, one_device)


def test_a_signal_to_one_process_stops_both_with_their_state_saved(folder):
    workdir = folder / "stopped"
    flags = (*FLAGS, "--config.train.num_epochs=500", f"--workdir={workdir}")
    finished = run_two(folder, *flags, stop_at=workdir / "metrics.jsonl")
    for code, _, stderr in finished:
        assert code == 0, stderr
    assert "stopped" in finished[0][1]
    assert not (workdir / "results.json").exists()
    assert any(path.name.isdecimal() for path in (workdir / "checkpoints").iterdir())


def test_a_mistake_ends_both_processes_with_its_reason(folder):
    flags = (*FLAGS, "--config.data.dir=nowhere", f"--workdir={folder / 'mistake'}")
    first, second = run_two(folder, *flags)
    assert first[0] == second[0] == 2
    assert "nowhere" in first[2]
    assert "process 0 stopped" in second[2]
    assert "Traceback" not in first[2] + second[2]


def test_a_batch_that_devices_cannot_share_is_refused(folder):
    result = command.run(
        folder,
        *FLAGS,
        "--config.train.batch_size=12",
        f"--workdir={folder / 'refused'}",
        JAX_NUM_CPU_DEVICES="8",
    )
    assert result.returncode == 2
    assert "train.batch_size = 12" in result.stderr
    assert "give 8" in result.stderr
    assert not (folder / "refused").exists()


def test_distributed_without_a_cluster_says_what_is_missing(folder):
    result = command.run(folder, *FLAGS, "--workdir=none", "--distributed")
    assert result.returncode == 2
    assert "--coordinator" in result.stderr
    assert "Traceback" not in result.stderr
