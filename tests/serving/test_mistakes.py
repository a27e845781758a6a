"""What no verb may answer with a traceback, or with half a file."""

from pathlib import Path

import pytest

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.data.synthetic_fields import FieldSettings, draw
from allcls_jax.serving import cli
from tests.full_disk import room_for
from tests.privileges import permissions_hold

# Verb → what follows it, MODEL standing for the model and OUT for what is written.
COMMANDS = {
    "predict": ("MODEL", "cell.png", "--out", "OUT.csv"),
    "explain": ("MODEL", "cell.png", "--out", "OUT"),
    "segment": ("field.png", "--model", "MODEL", "--out", "OUT"),
    "export": ("MODEL", "--format", "onnx", "--out", "OUT.onnx"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a cell, a field, and a folder not to be written to."""
    monkeypatch.chdir(tmp_path)
    cell = synthetic.draw(SyntheticConfig(), 0)
    Path("cell.png").write_bytes(transforms.encode_png(cell))
    field = draw(FieldSettings(width=300, height=240, nuclei=2), seed=0).picture
    Path("field.png").write_bytes(transforms.encode_png(field))
    Path("shut").mkdir(mode=0o500)
    return tmp_path


def mistake(
    capsys: pytest.CaptureFixture[str], verb: str, model: Path, out: str
) -> str:
    """Runs a verb, makes sure that it is told off in one line, and returns the line."""
    words = [
        word.replace("MODEL", str(model)).replace("OUT", out) for word in COMMANDS[verb]
    ]
    assert cli.main([verb, *words]) == 2
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("error: ")
    ]
    return line


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_place_that_may_not_be_written_to_is_told(here, tiny_model_dir, verb, capsys):
    with permissions_hold():
        line = mistake(capsys, verb, tiny_model_dir, "shut/out")
    assert "shut" in line
    assert "ermission" in line
    assert not any(Path("shut").iterdir())


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_full_disk_is_told_and_nothing_half_written(
    here, tiny_model_dir, verb, capsys
):
    before = sorted(here.iterdir())
    with room_for(400):
        line = mistake(capsys, verb, tiny_model_dir, "out")
    assert "File too large" in line
    left = [path for path in sorted(here.iterdir()) if path not in before]
    # A prediction keeps what is done, and says so.
    assert [path.name for path in left] == ["out.csv.part"] * ("kept in" in line)


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_model_that_may_not_be_read_is_told(
    here, tiny_model_dir, tmp_path, verb, capsys
):
    copy = tmp_path / "model"
    copy.mkdir()
    for path in tiny_model_dir.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "model.safetensors").chmod(0)
    with permissions_hold():
        line = mistake(capsys, verb, copy, "out")
    assert f"{copy}: may not be read by this user" in line


@pytest.mark.parametrize("verb", ["predict", "explain", "segment"])
def test_a_picture_that_may_not_be_read_is_told(here, tiny_model_dir, verb, capsys):
    for name in ("cell.png", "field.png"):
        Path(name).chmod(0)
    with permissions_hold():
        line = mistake(capsys, verb, tiny_model_dir, "out")
    assert "could be read" in line or "Permission denied" in line
