"""One table from several devices, processes and Ray's actors, a killed one included."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from allcls_jax.data import transforms
from tests.data import pictures
from tests.end_to_end import command

# More than a block of 256, so that there is something to divide.
NUMBER = 700

PROGRAM = (
    sys.executable,
    "-c",
    "import sys; from allcls_jax.serving.predict import main; sys.exit(main())",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a csv that lists seven cells a hundred times each."""
    made = tmp_path_factory.mktemp("processes")
    for i in range(7):
        data = transforms.encode_png(pictures.cell_image(48, level=60 + 12 * i))
        (made / f"{i}.png").write_bytes(data)
    rows = "".join(f"{i % 7}.png,p{i % 5}\n" for i in range(NUMBER))
    (made / "list.csv").write_text(f"path,patient\n{rows}")
    return made


@pytest.fixture(scope="module")
def whole(folder: Path, tiny_model_dir: Path) -> Path:
    """The table of one process on one device."""
    finish(start(folder, tiny_model_dir, "whole.csv"))
    return folder / "whole.csv"


def start(
    folder: Path, model: Path, out: str, *flags: str, **variables: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, str(model), "list.csv", f"--out={out}", "--batch_size=8", *flags],
        cwd=folder,
        env=command.environment(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, errors = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return output


def column(path: Path, name: str) -> list[str]:
    with path.open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_eight_devices_say_what_one_says(folder, tiny_model_dir, whole):
    finish(start(folder, tiny_model_dir, "eight.csv", JAX_NUM_CPU_DEVICES="8"))
    record = json.loads((folder / "eight.csv.json").read_text())
    assert record["provenance"]["device"]["count"] == 8
    tables = (folder / "eight.csv", whole)
    found, expected = (np.array(column(t, "probability"), float) for t in tables)
    assert len(found) == NUMBER
    assert np.ptp(expected) > 1e-3, "cells that differ"
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert column(tables[0], "image") == column(whole, "image")
    assert column(tables[0], "patient") == column(whole, "patient")


def test_two_processes_of_which_one_was_killed_make_the_same_table(
    folder, tiny_model_dir, whole
):
    def begin(index: int) -> subprocess.Popen[str]:
        flags = ("--num_processes=2", f"--process_id={index}")
        return start(folder, tiny_model_dir, "two.csv", *flags)

    killed, other = begin(0), begin(1)
    log = folder / "two.csv.part/process_0/rows.jsonl"
    try:
        while not log.exists():  # of the first of its two blocks
            assert killed.poll() is None
            time.sleep(0.002)
    finally:
        killed.kill()
        killed.communicate()
    assert "left to others" in finish(other)
    assert not (folder / "two.csv").exists()
    finish(begin(0))
    assert (folder / "two.csv").read_bytes() == whole.read_bytes()
    patients = "two.csv.patients.csv", "whole.csv.patients.csv"
    first, second = ((folder / name).read_bytes() for name in patients)
    assert first == second
    assert not log.parent.parent.exists()


def test_a_cluster_that_is_not_there_is_told_and_nothing_begun(folder, tiny_model_dir):
    process = start(folder, tiny_model_dir, "ray.csv", "--ray=auto")
    _, error = process.communicate(timeout=100)
    assert process.returncode == 2, error
    assert "error: --ray=auto: no cluster answers there" in error
    assert not list(folder.glob("ray.csv*"))


def test_actors_of_ray_make_the_same_table(folder, tiny_model_dir, whole):
    pytest.importorskip("ray")
    flags = ("--ray", "--num_processes=2")
    said = finish(start(folder, tiny_model_dir, "ray.csv", *flags))
    assert "called HEM" in said
    assert (folder / "ray.csv").read_bytes() == whole.read_bytes()
    assert not (folder / "ray.csv.part").exists()
