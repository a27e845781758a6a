"""Training ends where patience does, and asking for it again trains no further."""

import itertools
import json
from pathlib import Path

import pytest

from tests.end_to_end import command

EPOCHS, PATIENCE = 12, 2


# Learning rates at which the loss jumps before it settles.
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--config.optim.learning_rate=0.05",), id="kept features"),
        pytest.param(
            (
                "--config.optim.trainable=(('.*', True),)",
                "--config.optim.learning_rate=0.01",
            ),
            id="the whole network",
        ),
    ],
)
def test_training_ends_with_patience_and_stays_ended(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    words = (
        *command.TINY,
        *flags,
        f"--config.train.num_epochs={EPOCHS}",
        f"--config.train.patience={PATIENCE}",
        f"--workdir={workdir}",
    )
    result = command.run(tmp_path, *words)
    assert result.returncode == 0, result.stderr
    history = [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    losses = [row["validation_loss"] for row in history]
    best = losses.index(min(losses)) + 1
    assert [row["epoch"] for row in history] == [*range(1, best + PATIENCE + 1)]
    assert len(losses) < EPOCHS
    # It had patience: the loss rose before the best epoch too.
    assert any(later > loss for loss, later in itertools.pairwise(losses[:best]))
    found = json.loads((workdir / "results.json").read_text())["best"]
    assert found == {"epoch": best, "step": history[best - 1]["step"]}

    names = ("metrics.jsonl", "predictions.csv")
    before = {name: (workdir / name).read_bytes() for name in names}
    result = command.run(tmp_path, *words)
    assert result.returncode == 0, result.stderr
    assert {name: (workdir / name).read_bytes() for name in names} == before
