"""Our forward pass is Keras'; the converter writes what it read, or nothing."""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allcls_jax.config import ModelName
from allcls_jax.models import convert
from allcls_jax.models.convert import (
    TOLERANCE,
    forward,
    keras_forward,
    main,
    relative_errors,
)
from allcls_jax.models.preprocessing import CAFFE, TORCH, Preprocessing
from allcls_jax.models.weight_files import WeightFile, read_weights, write_safetensors

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

Arrays = dict[str, np.ndarray]

BLOCKS = [f"block{i}_pool" for i in range(1, 6)]


def weight_file(
    arrays: Arrays, variant: ModelName, preprocessing: Preprocessing = CAFFE
) -> WeightFile:
    return WeightFile(
        arrays=arrays,
        variant=variant,
        preprocessing=preprocessing,
        source_name="drawn",
        source_sha256="",
    )


def fill(model: Any, arrays: Arrays) -> Any:
    for layer in model.layers:
        if layer.weights:
            names = (f"{layer.name}/kernel", f"{layer.name}/bias")
            layer.set_weights([arrays[name] for name in names])
    return model


def draw_images(image_size: int) -> np.ndarray:
    shape = (2, image_size, image_size, 3)
    return np.random.default_rng(4).integers(0, 256, shape, np.uint8)


# Parity with Keras


@pytest.mark.usefixtures("zero_init")
def test_vgg19_agrees_with_keras_at_every_block(
    writers: dict[str, Any], keras_vgg19: Any, tmp_path: Path
) -> None:
    path = writers["official"](keras_vgg19, tmp_path / "file")
    weights, images = read_weights(path), draw_images(64)
    theirs, read = keras_forward(weights, images, source=path)
    assert read  # Keras took the file, not our arrays
    errors = relative_errors(forward(weights, images), theirs)
    assert list(errors) == BLOCKS
    assert max(errors.values()) <= TOLERANCE
    # The comparison notices one bias of one layer, in its block and not before.
    weights.arrays["block5_conv1/bias"][0] += 1
    errors = relative_errors(forward(weights, images), theirs)
    assert errors["block4_pool"] <= TOLERANCE < errors["block5_pool"]
    path.unlink()  # 80 MB


@pytest.mark.usefixtures("zero_init")
def test_vgg19_with_top_agrees_with_keras_and_is_bit_equal(
    draw_arrays: Callable[..., Arrays], writers: dict[str, Any], tmp_path: Path
) -> None:
    import keras

    arrays = draw_arrays(ModelName.VGG19, top=True)
    build: Any = keras.applications.VGG19  # its stub wants a name of weights
    model = fill(build(weights=None), arrays)
    path = writers["official"](model, tmp_path / "file")
    del model
    weights, images = read_weights(path), draw_images(224)
    assert weights.has_top
    assert weights.num_parameters == 143_667_240
    assert set(weights.arrays) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(weights.arrays[name], array), name
    del arrays
    theirs, read = keras_forward(weights, images, source=path)
    assert read
    errors = relative_errors(forward(weights, images), theirs)
    assert list(errors) == [*BLOCKS, "logits"]
    assert theirs["logits"].shape == (2, 1000)
    assert max(errors.values()) <= TOLERANCE
    path.unlink()  # 575 MB


@pytest.mark.usefixtures("zero_init")
def test_weights_of_torch_agree_with_keras_on_their_own_input(
    draw_arrays: Callable[..., Arrays],
) -> None:
    weights = weight_file(draw_arrays(ModelName.VGG16), ModelName.VGG16, TORCH)
    images = draw_images(32)
    theirs, read = keras_forward(weights, images)
    assert not read
    assert max(relative_errors(forward(weights, images), theirs).values()) <= TOLERANCE


@pytest.mark.usefixtures("zero_init")
def test_real_vgg16_agrees_with_keras(vgg16_weights: Path) -> None:
    weights = read_weights(vgg16_weights)
    assert weights.variant == ModelName.VGG16
    images = draw_images(224)
    theirs, read = keras_forward(weights, images, source=vgg16_weights)
    assert read
    assert max(relative_errors(forward(weights, images), theirs).values()) <= TOLERANCE


def test_relative_errors_are_of_the_largest_value() -> None:
    theirs = {"a": np.array([1.0, -4.0]), "b": np.zeros(2)}
    ours = {"a": np.array([1.5, -4.0]), "b": np.array([0.0, 3.0])}
    assert relative_errors(ours, theirs) == {"a": 0.125, "b": 3.0}


# The command


@pytest.fixture
def source(writers: dict[str, Any], keras_tiny: Any, tmp_path: Path) -> Path:
    """A nested tiny network, so that two layers are left out."""
    return writers["nested .h5"](keras_tiny, tmp_path / "source")


@pytest.fixture(scope="module")
def vgg16(
    draw_arrays: Callable[..., Arrays], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.safetensors"
    write_safetensors(
        weight_file(draw_arrays(ModelName.VGG16), ModelName.VGG16, TORCH), path
    )
    return path


def failure(
    capsys: pytest.CaptureFixture[str], arguments: list[str], *, code: int = 2
) -> str:
    """Returns what stands on standard error behind `error: `."""
    try:
        found = main(arguments)
    except SystemExit as ended:  # of the parser
        found = ended.code
    assert found == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("error: ") == 1
    return message.removeprefix("error: ")


def test_a_file_is_converted_and_described(
    source: Path,
    tiny_arrays: Arrays,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.safetensors"
    assert main([str(source), f"--out={out}"]) == 0
    weights = read_weights(out)
    for name, array in tiny_arrays.items():
        assert weights.arrays[name].tobytes() == array.tobytes()
    assert weights.source_name == "source.h5"
    printed = capsys.readouterr().out
    for file in (source, out):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in printed
    for fact in ("TINY", "dense_8, dense_9", "bgr", "4,480", str(out)):
        assert fact in printed


@pytest.mark.usefixtures("zero_init")
def test_verify_shows_every_block_and_then_writes(
    vgg16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert main([str(vgg16), f"--out={out}", "--verify", "--image-size=32"]) == 0
    assert out.read_bytes() == vgg16.read_bytes()
    printed = capsys.readouterr().out
    for block, shape in zip(BLOCKS, ("16 × 16 × 64", "8 × 8 × 128"), strict=False):
        assert re.search(rf"{block} +{shape} +\d\.\de", printed)
    assert "which was given these arrays" in printed


@pytest.mark.parametrize("value", [1e-4, np.nan])
def test_a_difference_from_keras_writes_nothing(
    value: float,
    vgg16: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = {name: np.ones((4, 1, 1, 1), np.float32) for name in BLOCKS}
    ours = theirs | {"block3_pool": theirs["block3_pool"] + np.float32(value)}
    monkeypatch.setattr(convert, "keras_forward", lambda *_, **__: (theirs, True))
    monkeypatch.setattr(convert, "forward", lambda *_: ours)
    out = tmp_path / "out.safetensors"
    message = failure(capsys, [str(vgg16), f"--out={out}", "--verify"], code=1)
    assert message.startswith("block3_pool differ")
    assert not out.exists()


def test_verify_without_keras_writes_nothing_and_says_so(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    out = tmp_path / "out.safetensors"
    message = failure(capsys, [str(source), f"--out={out}", "--verify"])
    assert "Keras is not installed" in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["{dir}/nowhere.h5", "--out={dir}/x.safetensors"], "does not exist"),
        (["{dir}", "--out={dir}/x.safetensors"], "is a folder"),
        (["{source}", "--out={dir}/x.h5"], "must end in .safetensors"),
        (["{source}", "--out={dir}/no/x.safetensors"], "a folder that exists"),
        (["{source}", "--out={dir}/folder.safetensors"], "must name a file"),
        (["{copy}", "--out={copy}"], "is the source"),
        (["{source}"], "--out; see allcls convert --help"),
        (["{source}", "--out={dir}/x.safetensors", "--sise=3"], "unrecognized"),
        (["{source}", "--out={dir}/x.safetensors", "--verify"], "has no such network"),
    ],
)
def test_a_mistake_of_the_user_is_one_error(
    arguments: list[str],
    cause: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    copy = tmp_path / "copy.safetensors"
    write_safetensors(read_weights(source), copy)
    before = sorted(tmp_path.iterdir())
    names = {"dir": tmp_path, "source": source, "copy": copy}
    message = failure(capsys, [text.format(**names) for text in arguments])
    assert cause in message
    assert message.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_size_of_the_images_must_suit_the_network(
    vgg16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.safetensors"
    arguments = [str(vgg16), f"--out={out}", "--verify", "--image-size=40"]
    assert "must be a multiple of 32" in failure(capsys, arguments)
    assert not out.exists()


def test_the_tool_runs_as_a_script(tmp_path: Path) -> None:
    tool = Path(__file__).parents[2] / "tools" / "convert_weights.py"
    source = tmp_path / "nowhere.h5"
    done = subprocess.run(
        [sys.executable, tool, source, f"--out={tmp_path}/x.safetensors"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tool.parents[1])},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {source}: does not exist; give a Keras file")
    assert done.stdout == ""
