"""An exported file computes what the model does, or is not there."""

import copy
import dataclasses
import errno
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from allcls_jax import DISCLAIMER
from allcls_jax.config import HeadKind, ModelName
from allcls_jax.data import stain
from allcls_jax.errors import InputError
from allcls_jax.experiments.model_directory import CheckCells
from allcls_jax.models import convert, vgg
from allcls_jax.models.classifier import Classifier
from allcls_jax.models.preprocessing import CAFFE, TORCH, Preprocessing
from allcls_jax.models.weight_files import read_weights
from allcls_jax.serving.explanation.attribution import attribute
from allcls_jax.serving.explanation.settings import Method, Settings
from allcls_jax.serving.export import FORMATS, check_file, export, main, prepare
from allcls_jax.serving.exports import check as export_check
from allcls_jax.serving.exports import to_keras as export_keras
from allcls_jax.serving.exports import to_onnx as export_onnx
from allcls_jax.serving.exports import to_safetensors as export_safetensors
from allcls_jax.serving.exports import to_stablehlo as export_stablehlo
from allcls_jax.serving.exports.check import NO_DEVICE, ExportDiffersError, Format
from allcls_jax.serving.model import Model

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SIZES = (3, 17)  # besides those of the check
TOLERANCE = 5e-6

UNLIKE = Preprocessing("rgb", (90.0, 100.5, 110.0), (0.01, 0.02, 0.03))
STAINED = dataclasses.replace(CAFFE, normalise_stain=True)


@pytest.fixture(scope="module", autouse=True)
def zeros_first() -> Iterator[None]:
    """Lets Keras begin with zeros: compiling its random draws takes five seconds."""
    import keras

    with pytest.MonkeyPatch.context() as patch:
        zeros = keras.initializers.Zeros()
        patch.setattr(
            keras.initializers.GlorotUniform,
            "__call__",
            lambda _, shape, dtype=None: zeros(shape, dtype),
        )
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def found(tiny_model: Model, folder: Path) -> dict[str, dict[str, Any]]:
    """The checks of `tiny_model` in every format; the files lie in `folder`."""
    return {name: export(tiny_model, name, out(folder, name)) for name in FORMATS}


def out(folder: Path, name: str) -> Path:
    return folder / f"model{FORMATS[name].suffix}"


def reference(
    classifier: Classifier, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The model in numpy, in float64, from the table of layers."""
    preprocessing = classifier.preprocessing
    order = (2, 1, 0) if preprocessing.channel_order == "bgr" else (0, 1, 2)
    x: Any = images.astype(np.float64)
    if preprocessing.normalise_stain:
        x = standard_cells(x)
    x = x[..., order]
    x = (x - np.array(preprocessing.mean)) * np.array(preprocessing.scale)
    averages = []
    for layer in classifier.model.layers:
        arrays = {
            name: np.asarray(array, np.float64)
            for name, array in classifier.params.get(layer.name, {}).items()
        }
        match layer:
            case vgg.Conv():
                _, height, width, _ = x.shape
                padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
                x = arrays["bias"] + sum(
                    padded[:, i : i + height, j : j + width] @ arrays["kernel"][i, j]
                    for i in range(3)
                    for j in range(3)
                )
                x = np.maximum(x, 0)
            case vgg.MaxPool():
                n, height, width, channels = x.shape
                x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
                averages.append(x.mean((1, 2)))
            case vgg.BlockAverages():
                x = np.log1p(np.concatenate(averages, 1))
            case vgg.Flatten():
                x = x.reshape(len(x), -1)
            case vgg.GlobalAveragePool():
                x = x.mean((1, 2))
            case vgg.Dense(_, _, relu):
                x = x @ arrays["kernel"] + arrays["bias"]
                x = np.maximum(x, 0) if relu else x
    difference = x[:, 1] - x[:, 0]
    return x, 1 / (1 + np.exp(-difference / classifier.temperature))


def standard_cells(images: np.ndarray) -> np.ndarray:
    """`stain.normalise` in float64, a picture and a channel at a time."""
    result = np.zeros_like(images)
    for image, normalised in zip(images, result, strict=True):
        cell = image.any(-1)
        for channel in range(3) if cell.any() else ():
            density = -np.log(np.maximum(image[..., channel][cell], 1) / 255)
            wanted, wide = np.array(stain.STANDARD)[:, channel]
            density = (density - density.mean()) / density.std() * wide + wanted
            normalised[cell, channel] = 255 * np.exp(-np.maximum(density, 0))
    return result


def draw(count: int, side: int) -> np.ndarray:
    shape = (count, side, side, 3)
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def another(
    model: Model,
    *,
    head: HeadKind = HeadKind.FLATTEN,
    preprocessing: Preprocessing = CAFFE,
    dtype: Any = jnp.float32,
) -> Model:
    """One of 64 pixels with random parameters; its check cells are numpy's."""
    network = vgg.VGG(vgg.conv_stack(ModelName.TINY) + vgg.head(head, 0.0), dtype=dtype)
    params = vgg.init_params(vgg.param_shapes(network, 64), seed=2)
    for arrays in params.values():
        arrays["bias"] += jnp.linspace(-0.1, 0.2, arrays["bias"].size)
    made = copy.copy(model)
    made.classifier = Classifier(network, params, preprocessing, 64, 1.5)
    images = draw(16, 64)
    outputs = reference(made.classifier, images)
    made.check = CheckCells(images, *(array.astype(np.float32) for array in outputs))
    made.record = copy.deepcopy(model.record)
    made.record["model"]["image_size"] = 64
    return made


# Each format as its users run it, without this package where it is not needed.


def run_onnx(path: Path, images: np.ndarray) -> tuple[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits, probability = session.run(None, {"images": images})
    return logits, probability


def run_stablehlo(path: Path, images: np.ndarray) -> tuple[Any, Any]:
    logits, probability = jax.export.deserialize(bytearray(path.read_bytes())).call(
        images
    )
    return logits, probability


def run_safetensors(path: Path, images: np.ndarray) -> tuple[Any, Any]:
    classifier = export_safetensors.read(path)
    logits = jax.jit(classifier.logits)(images)
    return logits, classifier.probability(logits)


def run_keras(path: Path, images: np.ndarray) -> tuple[Any, Any]:
    import keras

    model: Any = keras.saving.load_model(path)
    outputs = model.predict(images, verbose=0)
    return outputs["logits"], outputs["probability"]


RUNNERS = {
    "onnx": run_onnx,
    "stablehlo": run_stablehlo,
    "safetensors": run_safetensors,
    "keras": run_keras,
}


def agrees(run: Any, path: Path, model: Model, sizes: tuple[int, ...]) -> None:
    images = draw(max(sizes), model.classifier.image_size)
    logits, probability = reference(model.classifier, images)
    assert np.ptp(logits, axis=0).min() > 1e-3, "the images must differ"
    for size in sizes:
        theirs = [np.asarray(output) for output in run(path, images[:size])]
        assert [output.dtype.name for output in theirs] == ["float32", "float32"]
        np.testing.assert_allclose(theirs[0], logits[:size], atol=TOLERANCE, rtol=1e-5)
        scale = 1 + 1 / model.classifier.temperature
        np.testing.assert_allclose(
            theirs[1], probability[:size], atol=TOLERANCE * scale, rtol=0
        )


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_computes_what_the_model_does_at_any_batch_size(
    name: str, folder: Path, tiny_model: Model
) -> None:
    agrees(RUNNERS[name], out(folder, name), tiny_model, SIZES)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("head", "preprocessing", "dtype"),
    [
        (HeadKind.FLATTEN, UNLIKE, jnp.float32),
        # What ran in bfloat16 is exported in float32.
        (HeadKind.GAP, TORCH, jnp.bfloat16),
        (HeadKind.FLATTEN, STAINED, jnp.float32),
        (HeadKind.BLOCKS, CAFFE, jnp.float32),
        (HeadKind.BLOCKS, STAINED, jnp.float32),
    ],
)
def test_other_heads_sizes_types_and_preprocessing_come_along(
    name: str,
    head: HeadKind,
    preprocessing: Preprocessing,
    dtype: Any,
    tiny_model: Model,
    tmp_path: Path,
) -> None:
    model = another(tiny_model, head=head, preprocessing=preprocessing, dtype=dtype)
    found = export(model, name, out(tmp_path, name))
    for difference in found["check"]["platforms"]["cpu"].values():
        assert difference <= TOLERANCE


@pytest.mark.parametrize("name", FORMATS)
def test_cells_are_normalised_in_the_file_and_black_stays_black(
    name: str, tiny_model: Model, tmp_path: Path
) -> None:
    model = another(tiny_model, preprocessing=STAINED)
    images = draw(4, 64)
    images[:3, :20] = 0
    images[1] //= 3
    images[2] = 0
    logits, probability = reference(model.classifier, images)
    path = out(tmp_path, name)
    FORMATS[name].write(model, path)
    theirs = RUNNERS[name](path, images)
    np.testing.assert_allclose(theirs[0], logits, atol=1e-4)
    np.testing.assert_allclose(theirs[1], probability, atol=1e-4)
    plain = dataclasses.replace(model.classifier, preprocessing=CAFFE)
    assert np.abs(reference(plain, images)[0] - logits)[[0, 1, 3]].min() > 1e-2


# What lies beside, and inside


@pytest.mark.parametrize("name", FORMATS)
def test_the_check_lies_beside_the_file(
    name: str, found: dict[str, Any], folder: Path, tiny_model: Model
) -> None:
    path = out(folder, name)
    told = json.loads(check_file(path).read_text())
    assert told == found[name]
    assert told["file"] == path.name
    assert told["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told["file_bytes"] == path.stat().st_size
    assert told["format"] == name
    assert told["model_sha256"] == tiny_model.sha256
    assert told["thresholds"] == tiny_model.thresholds
    assert told["labels"] == ["HEM", "ALL"]
    assert told["disclaimer"] == DISCLAIMER
    assert told["notes"] == ["synthetic cells", "random backbone weights"]
    version = sys.modules[FORMATS[name].runtime].__version__
    assert told["check"]["runtime"] == f"{FORMATS[name].runtime} {version}"
    assert told["check"]["batch_sizes"] == [1, 16]
    platforms = told["check"]["platforms"]
    assert set(platforms) >= {"cpu", "cuda"}
    assert 0 <= platforms["cpu"]["logits"] <= 1e-5
    here = {device.platform.replace("gpu", "cuda") for device in jax.devices()}
    for platform in set(platforms) - here - {"cpu"}:
        assert platforms[platform] == NO_DEVICE


@pytest.mark.usefixtures("found")
def test_nothing_else_is_left(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    files = {out(folder, name).name for name in FORMATS}
    assert names == files | {f"{name}.check.json" for name in files}


@pytest.mark.usefixtures("found")
def test_onnx_tells_of_itself(folder: Path, tiny_model: Model) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        out(folder, "onnx"), providers=["CPUExecutionProvider"]
    )
    (images,) = session.get_inputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == ["batch", 32, 32, 3]
    outputs = {output.name: output.shape for output in session.get_outputs()}
    assert outputs == {"logits": ["batch", 2], "probability": ["batch"]}
    meta = session.get_modelmeta()
    assert meta.description == DISCLAIMER
    told = meta.custom_metadata_map
    assert json.loads(told["labels"]) == ["HEM", "ALL"]
    assert json.loads(told["thresholds"]) == tiny_model.thresholds
    assert json.loads(told["image_size"]) == 32
    assert told["model_sha256"] == tiny_model.sha256
    assert told["disclaimer"] == DISCLAIMER


@pytest.mark.usefixtures("found")
def test_stablehlo_is_for_every_platform_and_calls_nothing_of_one(folder: Path) -> None:
    content = out(folder, "stablehlo").read_bytes()
    exported = jax.export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0].shape[0]) == "batch"
    program = exported.mlir_module()
    assert "stablehlo.convolution" in program
    assert set(re.findall(r"custom_call @(\w+)", program)) <= {"shape_assertion"}
    assert "HIGHEST" in program


@pytest.mark.usefixtures("found")
def test_safetensors_are_read_by_others_and_start_a_training(
    folder: Path, tiny_model: Model
) -> None:
    path = out(folder, "safetensors")
    with safetensors.safe_open(path, framework="numpy") as file:
        told = json.loads(file.metadata()["allcls_jax"])
        kernel = file.get_tensor("dense_2/kernel")
    params = tiny_model.classifier.params
    np.testing.assert_array_equal(kernel, params["dense_2"]["kernel"])
    assert told["thresholds"] == tiny_model.thresholds
    assert told["layers"][0] == {
        "layer": "Conv",
        "name": "block1_conv1",
        "channels": 4,
    }
    weights = read_weights(path)
    assert weights.variant is ModelName.TINY
    assert weights.source_sha256 == tiny_model.sha256
    assert_same_stack(weights.arrays, params)


@pytest.mark.parametrize(
    ("blocks", "standardised"), [(5, None), (3, None), (5, 20), (5, 52)]
)
def test_the_table_of_layers_comes_back_as_it_was(
    blocks: int, standardised: int | None, tiny_model: Model, tmp_path: Path
) -> None:
    network = vgg.VGG(
        vgg.conv_stack(ModelName.TINY, blocks)
        + vgg.head(HeadKind.BLOCKS, 0.0, blocks=blocks, standardised=standardised)
    )
    params = vgg.init_params(vgg.param_shapes(network, 32), seed=2)
    model = copy.copy(tiny_model)
    model.classifier = Classifier(network, params, CAFFE, 32, 1.5)
    path = out(tmp_path, "safetensors")
    FORMATS["safetensors"].write(model, path)
    back = export_safetensors.read(path)
    assert back.model.layers == network.layers
    assert hash(back.model) == hash(network)
    images = draw(2, 32)
    np.testing.assert_array_equal(back.logits(images), model.classifier.logits(images))
    # Whoever compiles for a network asks for its hash.
    settings = Settings(method=Method.INTEGRATED_GRADIENTS, steps=4)
    sign = np.ones(2)
    maps = attribute(back, images, sign, settings).values
    assert np.ptp(maps) > 0
    expected = attribute(model.classifier, images, sign, settings).values
    np.testing.assert_array_equal(maps, expected)


def assert_same_stack(arrays: dict[str, np.ndarray], params: vgg.Params) -> None:
    assert len(arrays) == 10
    for name, array in arrays.items():
        layer, _, leaf = name.partition("/")
        np.testing.assert_array_equal(array, params[layer][leaf])


@pytest.mark.usefixtures("found")
def test_a_file_that_is_no_exported_classifier_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"model\.onnx.*export it again"):
        export_safetensors.read(out(folder, "onnx"))


# The way back to Keras, and from there


@pytest.mark.parametrize("preprocessing", [CAFFE, TORCH, UNLIKE])
def test_keras_files_are_read_back(
    preprocessing: Preprocessing, tiny_model: Model, tmp_path: Path
) -> None:
    model = another(tiny_model, preprocessing=preprocessing)
    made = export_keras.build(model)
    for name in ("model.keras", "model.weights.h5"):
        path = tmp_path / name
        made.save(path) if name == "model.keras" else made.save_weights(path)
        back = read_weights(path)
        assert back.variant is ModelName.TINY
        assert_same_stack(back.arrays, model.classifier.params)
        assert back.preprocessing.channel_order == preprocessing.channel_order
        for field in ("mean", "scale"):
            np.testing.assert_allclose(
                getattr(back.preprocessing, field),
                getattr(preprocessing, field),
                rtol=1e-6,
            )
        assert (back.preprocessing == preprocessing) is (preprocessing is not UNLIKE)


@pytest.mark.usefixtures("found")
def test_the_converter_reads_a_keras_file_back(
    folder: Path, tiny_model: Model, tmp_path: Path
) -> None:
    back = tmp_path / "back.safetensors"
    assert convert.main([str(out(folder, "keras")), "--out", str(back)]) == 0
    weights = read_weights(back)
    assert weights.preprocessing == tiny_model.classifier.preprocessing
    assert_same_stack(weights.arrays, tiny_model.classifier.params)


def test_a_preprocessing_layer_that_makes_no_sense_is_not_guessed_around(
    tiny_model: Model, tmp_path: Path
) -> None:
    made = export_keras.build(tiny_model)
    layer = made.get_layer("preprocessing_bgr")
    layer.set_weights([np.zeros(3), np.full(3, np.nan), np.array(0)])
    made.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(InputError, match="does not say how its input is preprocessed"):
        read_weights(tmp_path / "model.weights.h5")


@pytest.mark.usefixtures("found")
def test_training_can_go_on_in_keras(folder: Path, tiny_model: Model) -> None:
    import keras

    model: Any = keras.saving.load_model(out(folder, "keras"))
    rate = tiny_model.record["config"]["model"]["dropout"]
    assert model.get_layer("dropout_1").rate == rate > 0
    model.trainable = True
    preprocessing = model.get_layer("preprocessing_bgr")
    assert preprocessing.trainable_weights == []
    assert len(model.trainable_weights) == 14
    initializer = model.get_layer("dense_2").get_config()["kernel_initializer"]
    assert initializer["class_name"] == "GlorotUniform"


# What differs is refused


def damaged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a format's files have one wrong weight of one layer."""
    module = {
        "onnx": export_onnx,
        "stablehlo": export_stablehlo,
        "safetensors": export_safetensors,
        "keras": export_keras,
    }[name]

    def wrong(model: Model) -> Any:
        params = export_check.host_params(model)
        wrong_by = np.array([0, 0.001], np.float32)
        params["dense_3"]["bias"] = params["dense_3"]["bias"] + wrong_by
        return params

    monkeypatch.setattr(module, "host_params", wrong)


@pytest.mark.parametrize("name", FORMATS)
def test_a_wrong_weight_is_caught_and_nothing_is_left(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged(name, monkeypatch)
    path = out(tmp_path, name)
    given = [str(tiny_model_dir), "--format", name, "--out", str(path)]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {name} on cpu, batches of 1: differs")
    assert "logits by 1.0e-03" in error
    assert error.endswith("at most 0.0001 is allowed; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_file_leaves_the_older_one(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Model, tmp_path: Path
) -> None:
    path = out(tmp_path, "onnx")
    path.write_text("older")
    check_file(path).write_text("{}")
    with monkeypatch.context() as patch:
        damaged("onnx", patch)
        with pytest.raises(ExportDiffersError):
            export(tiny_model, "onnx", path, overwrite=True)
    assert path.read_text() == "older"
    assert check_file(path).read_text() == "{}"
    export(tiny_model, "onnx", path, overwrite=True)
    assert path.stat().st_size > 1000
    assert json.loads(check_file(path).read_text())["format"] == "onnx"


def test_swapped_channels_are_caught(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Model, tmp_path: Path
) -> None:
    whole = export_onnx._preprocess

    def swapped(graph: Any, model: Model) -> str:
        model = copy.copy(model)
        wrong = dataclasses.replace(model.classifier.preprocessing, channel_order="rgb")
        model.classifier = dataclasses.replace(model.classifier, preprocessing=wrong)
        return whole(graph, model)

    monkeypatch.setattr(export_onnx, "_preprocess", swapped)
    with pytest.raises(ExportDiffersError, match="onnx on cpu"):
        export(tiny_model, "onnx", out(tmp_path, "onnx"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda logits, p: (logits * np.nan, p), "logits by nan"),
        (lambda logits, p: (logits, p + np.float32(2e-4)), "probability by 2.0e-04"),
        (lambda logits, p: (logits, p[:, None]), "probability came out as float32"),
        (lambda logits, p: (logits.astype(float), p), "logits came out as float64"),
        (lambda logits, p: (logits[:1], p), "batches of 16: logits came out"),
    ],
)
def test_the_check_sees_every_kind_of_difference(
    change: Any, said: str, tiny_model: Model
) -> None:
    cells = tiny_model.check
    right = {
        image.tobytes(): both
        for image, *both in zip(
            cells.images, cells.logits, cells.probability, strict=True
        )
    }

    def run(images: np.ndarray) -> Any:
        outputs = zip(*(right[image.tobytes()] for image in images), strict=True)
        return change(*map(np.array, outputs))

    made = Format(
        name="made",
        suffix=".made",
        runtime="made",
        version=str,
        write=lambda model, path: None,
        platforms=("cpu", "cuda"),
        open=lambda path, platform: run if platform == "cpu" else None,
        load="",
    )
    with pytest.raises(ExportDiffersError, match=said):
        export_check.check(made, Path("file"), cells)
    change = lambda logits, p: (logits + np.float32(9e-5), p)  # noqa: E731
    found = export_check.check(made, Path("file"), cells)
    assert found["cpu"]["logits"] == pytest.approx(9e-5, rel=0.01)
    assert found["cpu"]["probability"] == 0
    assert found["cuda"] == NO_DEVICE


# What the user can mend


def refused(
    capsys: pytest.CaptureFixture[str], model: Path, name: str, path: Path
) -> str:
    assert main([str(model), "--format", name, "--out", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_must_be_named_as_its_format(
    name: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = refused(capsys, tiny_model_dir, name, tmp_path / "model.bin")
    assert f"must end in {FORMATS[name].suffix}" in error


def test_files_that_exist_are_kept(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    for existing in (path, check_file(path)):
        existing.write_text("mine")
        error = refused(capsys, tiny_model_dir, "onnx", path)
        assert f"{existing.name} exists already; add --overwrite" in error
        assert existing.read_text() == "mine"
        existing.unlink()


def test_a_file_needs_a_folder(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, tiny_model_dir, "onnx", tmp_path / "no" / "model.onnx")
    assert "a folder that exists" in error
    (tmp_path / "folder.onnx").mkdir()
    error = refused(capsys, tiny_model_dir, "onnx", tmp_path / "folder.onnx")
    assert "a folder that exists" in error


def test_a_model_directory_is_not_written_into(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_model_dir / "model.safetensors"
    before = path.read_bytes()
    given = [str(tiny_model_dir), "--format", "safetensors", "--out", str(path)]
    assert main([*given, "--overwrite"]) == 2
    assert "is inside a model directory" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_what_is_no_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, tmp_path / "none", "onnx", tmp_path / "model.onnx")
    assert f"{tmp_path / 'none'}" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "package"),
    [("onnx", "onnx"), ("onnx", "onnxruntime"), ("keras", "keras")],
)
def test_a_missing_runtime_is_named_with_its_remedy(
    name: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    error = refused(capsys, tmp_path / "unread", name, out(tmp_path, name))
    assert f"{package} is not installed" in error
    assert "pip install 'allcls-jax[export]'" in error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(self: Path, *_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)  # the last that is written
    error = refused(capsys, tiny_model_dir, "safetensors", tmp_path / "m.safetensors")
    assert "m.safetensors: No space left on device; make room" in error
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["model", "--format", "tflite", "--out", "model.tflite"])
    assert ended.value.code == 2
    assert "allcls export --help" in capsys.readouterr().err


def test_the_command_shows_what_was_found(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    given = [str(tiny_model_dir), "--format", "onnx", "--out", str(path)]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "onnxruntime" in shown
    assert f"wrote {path}" in shown
    assert "synthetic cells" in shown
    assert DISCLAIMER in shown
    assert prepare("onnx", path, overwrite=True).name == "onnx"
