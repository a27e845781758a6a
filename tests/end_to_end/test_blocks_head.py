"""The head on the averages of all blocks says the same wherever it is asked."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic
from allcls_jax.data.cells import ALL, HEM
from allcls_jax.serving.model import open_model
from tests.end_to_end import command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated on its own cells as well."""
    folder = tmp_path_factory.mktemp("blocks")
    words = (*command.TINY, "--config.model.head=blocks", f"--workdir={folder / 'run'}")
    for mode in ("train", "evaluate"):
        result = command.run(folder, *words, f"--mode={mode}")
        assert result.returncode == 0, result.stderr
    return folder / "run"


def probabilities(folder: Path) -> dict[str, float]:
    """What a table says of test images."""
    with (folder / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return {row["image_id"]: float(row["probability"]) for row in rows}


def test_evaluation_repeats_what_the_run_predicted(workdir: Path) -> None:
    expected = probabilities(workdir)
    (output,) = workdir.glob("evaluation-synthetic-*")
    found = probabilities(output)
    assert len(expected) == 32
    assert len(found) == 96
    np.testing.assert_allclose(
        [found[name] for name in expected], [*expected.values()], atol=1e-5, rtol=0
    )
    assert np.ptp([*expected.values()]) > 0.01


def test_the_model_directory_predicts_what_the_run_predicted(workdir: Path) -> None:
    expected = probabilities(workdir)
    model = open_model(workdir / "model", batch_size=16)
    pictures = {
        cell.image_id: model.read(cell.source.read(), name=cell.image_id).image
        for cell in synthetic.cells(SyntheticConfig(num_images=96))
        if cell.image_id in expected
    }
    assert pictures.keys() == expected.keys()
    logits = model.logits(np.stack([pictures[name] for name in expected]))
    found = special.expit(logits[:, ALL].astype(float) - logits[:, HEM])
    np.testing.assert_allclose(found, [*expected.values()], atol=1e-5, rtol=0)
