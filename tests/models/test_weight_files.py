"""Every layout gives the same arrays, bit for bit; every bad file one clear error."""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax import lax

from allcls_jax.config import ModelName
from allcls_jax.errors import InputError
from allcls_jax.models.convert import forward
from allcls_jax.models.preprocessing import CAFFE, TORCH
from allcls_jax.models.weight_files import (
    WeightFile,
    array_shapes,
    read_weights,
    write_safetensors,
)

# Keras' variables do not know of the `copy` that numpy 2 passes to them.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

Arrays = dict[str, np.ndarray]

KERAS_LAYOUTS = (
    "official",
    "keras 2",
    "keras 2, nested",
    "keras 3, legacy",
    ".weights.h5",
    ".weights.h5, numbered",
    "whole .h5",
    ".keras",
    "nested .weights.h5",
    "nested .weights.h5, numbered",
    "nested .h5",
    "nested .keras",
    "nested twice, .weights.h5",
    "nested twice, .h5",
)


def assert_bit_equal(actual: Arrays, expected: Arrays) -> None:
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == np.float32, name
        assert actual[name].shape == array.shape, name
        assert actual[name].tobytes() == array.tobytes(), name


@pytest.fixture
def official(writers: dict[str, Any], keras_tiny: Any, tmp_path: Path) -> Path:
    """The tiny network in the official layout."""
    return writers["official"](keras_tiny, tmp_path / "official")


@pytest.fixture
def ours(official: Path, tmp_path: Path) -> Path:
    """The same, as we write it."""
    write_safetensors(read_weights(official), tmp_path / "ours.safetensors")
    return tmp_path / "ours.safetensors"


def refusal(path: Path) -> str:
    """Returns the error's text, which must name the file."""
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_writers_cover_the_layouts(writers: dict[str, Any]) -> None:
    assert set(writers) == set(KERAS_LAYOUTS)


@pytest.mark.parametrize(
    ("variant", "stack", "whole"),
    [
        (ModelName.VGG16, 14_714_688, 138_357_544),
        (ModelName.VGG19, 20_024_384, 143_667_240),
    ],
)
def test_array_shapes_count_the_published_parameters(
    variant: ModelName, stack: int, whole: int
) -> None:
    for top, count in ((False, stack), (True, whole)):
        shapes = array_shapes(variant, top=top).values()
        assert sum(math.prod(shape) for shape in shapes) == count


@pytest.mark.parametrize("layout", KERAS_LAYOUTS)
def test_every_layout_gives_the_same_arrays_bit_for_bit(
    layout: str,
    writers: dict[str, Any],
    keras_tiny: Any,
    tiny_arrays: Arrays,
    tmp_path: Path,
) -> None:
    path = writers[layout](keras_tiny, tmp_path / "file")
    assert_bit_equal(read_weights(path).arrays, tiny_arrays)


@pytest.mark.parametrize(
    "layout",
    [
        "official",
        "keras 3, legacy",
        ".weights.h5",
        ".weights.h5, numbered",
        "whole .h5",
        ".keras",
        "nested .weights.h5",
        "nested .h5",
        "nested .keras",
    ],
)
def test_vgg19_is_read_bit_for_bit(
    layout: str,
    writers: dict[str, Any],
    keras_vgg19: Any,
    vgg19_arrays: Arrays,
    tmp_path: Path,
) -> None:
    path = writers[layout](keras_vgg19, tmp_path / "file")
    weights = read_weights(path)
    assert_bit_equal(weights.arrays, vgg19_arrays)
    assert weights.variant == ModelName.VGG19
    assert weights.preprocessing == CAFFE
    assert not weights.has_top
    assert weights.num_parameters == 20_024_384
    assert weights.source_name == path.name
    assert weights.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()  # 80 MB


@pytest.mark.parametrize(
    ("layout", "ignored"),
    [
        ("official", ()),
        ("keras 2, nested", ("dense",)),
        ("nested .weights.h5", ("dense_8", "dense_9")),
        ("nested .h5", ("dense_8", "dense_9")),
        ("nested twice, .h5", ("dense_8", "dense_9")),
        ("nested .weights.h5, numbered", ("dense", "dense_1")),
    ],
)
def test_layers_of_another_head_are_named(
    layout: str,
    ignored: tuple[str, ...],
    writers: dict[str, Any],
    keras_tiny: Any,
    tiny_arrays: Arrays,
    tmp_path: Path,
) -> None:
    weights = read_weights(writers[layout](keras_tiny, tmp_path / "file"))
    assert_bit_equal(weights.arrays, tiny_arrays)
    assert sorted(weights.ignored) == list(ignored)


@pytest.mark.parametrize("suffix", [".h5", ".keras", ".weights.h5"])
def test_the_moments_of_an_optimizer_are_not_taken_for_weights(
    suffix: str, keras_tiny: Any, tiny_arrays: Arrays, tmp_path: Path
) -> None:
    keras_tiny.compile("adam", "mse")
    keras_tiny.optimizer.build(keras_tiny.trainable_variables)
    path = tmp_path / f"trained{suffix}"
    (keras_tiny.save_weights if suffix == ".weights.h5" else keras_tiny.save)(path)
    weights = read_weights(path)
    assert_bit_equal(weights.arrays, tiny_arrays)
    assert weights.ignored == ()


@pytest.mark.parametrize("layer", ["fc1", "predictions"])
def test_a_head_with_a_vgg_name_and_another_shape_is_left_out(
    layer: str, official: Path, tiny_arrays: Arrays
) -> None:
    with h5py.File(official, "r+") as file:
        file[f"{layer}/{layer}/kernel:0"] = np.ones((16, 2), np.float32)
    weights = read_weights(official)
    assert_bit_equal(weights.arrays, tiny_arrays)
    assert weights.ignored == (layer,)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floating_point_types_become_float32(
    kind: type, official: Path, tiny_arrays: Arrays
) -> None:
    name = "block1_conv1/block1_conv1_W_1:0"
    with h5py.File(official, "r+") as file:
        del file[name]
        file[name] = tiny_arrays["block1_conv1/kernel"].astype(kind)
    expected = tiny_arrays["block1_conv1/kernel"].astype(kind).astype(np.float32)
    read = read_weights(official).arrays["block1_conv1/kernel"]
    assert read.tobytes() == expected.tobytes()


# torchvision and timm


@jax.jit
def torch_forward(state: dict[str, Any], images: jax.Array) -> jax.Array:
    """VGG with torchvision's names as torch computes it: channels first throughout."""
    with jax.default_matmul_precision("float32"):
        x = images.astype(jnp.float32).transpose(0, 3, 1, 2) / 255
        mean, deviation = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        x = (x - jnp.array(mean)[:, None, None]) / jnp.array(deviation)[:, None, None]
        for place in (0, 3, 6, 9, 12):
            x = lax.conv_general_dilated(
                x,
                state[f"features.{place}.weight"],
                (1, 1),
                "SAME",
                dimension_numbers=("NCHW", "OIHW", "NCHW"),
            )
            x = jnp.maximum(x + state[f"features.{place}.bias"][:, None, None], 0)
            n, channels, rows, columns = x.shape
            x = x.reshape(n, channels, rows // 2, 2, columns // 2, 2).max((3, 5))
        x = x.reshape(len(x), -1)
        for place in (0, 3, 6):
            weight, bias = (
                state[f"classifier.{place}.{k}"] for k in ("weight", "bias")
            )
            x = x @ weight.T + bias
            x = x if place == 6 else jnp.maximum(x, 0)
        return x


def test_torchvision_and_timm_give_the_logits_of_torch(
    draw_arrays: Callable[..., Arrays],
    torch_state: Callable[..., Arrays],
    tmp_path: Path,
) -> None:
    arrays = draw_arrays(ModelName.TINY, top=True)
    images = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), np.uint8)
    state = torch_state(arrays, ModelName.TINY, timm=False)
    expected = np.asarray(torch_forward(state, jnp.asarray(images)))
    for timm in (False, True):
        path = tmp_path / "torch.safetensors"
        safetensors.numpy.save_file(
            torch_state(arrays, ModelName.TINY, timm=timm), path
        )
        weights = read_weights(path)
        assert_bit_equal(weights.arrays, arrays)
        assert weights.preprocessing == TORCH
        assert weights.has_top
        assert weights.ignored == ()
        logits = forward(weights, images)["logits"]
        assert np.max(np.abs(logits - expected)) <= 1e-5 * np.max(np.abs(expected))
        path.unlink()  # 96 MB


@pytest.mark.parametrize("variant", [ModelName.VGG16, ModelName.VGG19])
def test_torch_numbers_of_the_published_networks(
    variant: ModelName,
    draw_arrays: Callable[..., Arrays],
    torch_state: Callable[..., Arrays],
    tmp_path: Path,
) -> None:
    arrays = draw_arrays(variant)
    path = tmp_path / "torch.safetensors"
    state = torch_state(arrays, variant, timm=False)
    other_head = {"classifier.6.weight": np.ones((2, 4096), np.float32)}
    safetensors.numpy.save_file(state | other_head, path)
    weights = read_weights(path)
    assert weights.variant == variant
    assert_bit_equal(weights.arrays, arrays)
    assert weights.ignored == ("predictions",)
    path.unlink()  # 80 MB


def test_bfloat16_tensors_become_float32(
    tiny_arrays: Arrays, torch_state: Callable[..., Arrays], tmp_path: Path
) -> None:
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in tiny_arrays.items()}
    path = tmp_path / "half.safetensors"
    safetensors.numpy.save_file(torch_state(half, ModelName.TINY, timm=False), path)
    expected = {k: v.astype(np.float32) for k, v in half.items()}
    assert_bit_equal(read_weights(path).arrays, expected)


def test_a_vgg_with_batch_normalisation_is_another_model(
    tiny_arrays: Arrays, torch_state: Callable[..., Arrays], tmp_path: Path
) -> None:
    state = torch_state(tiny_arrays, ModelName.TINY, timm=False)
    state["features.1.running_mean"] = np.zeros(4, np.float32)
    path = tmp_path / "bn.safetensors"
    safetensors.numpy.save_file(state, path)
    assert "features.1/running_mean: is not part of TINY" in refusal(path)


# Our own files


def test_what_we_write_is_read_back_exactly(
    tiny_arrays: Arrays, tmp_path: Path
) -> None:
    written = WeightFile(
        arrays=tiny_arrays,
        variant=ModelName.TINY,
        preprocessing=TORCH,
        source_name="a file.h5",
        source_sha256="ab" * 32,
    )
    path = tmp_path / "ours.safetensors"
    write_safetensors(written, path)
    read = read_weights(path)
    assert_bit_equal(read.arrays, tiny_arrays)
    for field in ("variant", "preprocessing", "source_name", "source_sha256"):
        assert getattr(read, field) == getattr(written, field)
    first = path.read_bytes()
    write_safetensors(read, path)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["ours.safetensors"]


def test_a_transposed_view_is_written_by_its_values(tmp_path: Path) -> None:
    arrays = {
        name: np.asfortranarray(np.random.default_rng(2).random(shape, np.float32))
        for name, shape in array_shapes(ModelName.TINY, top=False).items()
    }
    weights = WeightFile(
        arrays=arrays,
        variant=ModelName.TINY,
        preprocessing=CAFFE,
        source_name="",
        source_sha256="",
    )
    write_safetensors(weights, tmp_path / "ours.safetensors")
    assert_bit_equal(read_weights(tmp_path / "ours.safetensors").arrays, arrays)


def test_a_folder_that_is_missing_is_named_on_writing(
    ours: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"nowhere.*No such file"):
        write_safetensors(read_weights(ours), tmp_path / "nowhere" / "x.safetensors")


@pytest.mark.parametrize("step", ["open", "replace"])
def test_a_failed_write_leaves_the_old_file(
    step: str, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, before = read_weights(ours), ours.read_bytes()
    there = sorted(ours.parent.iterdir())

    def full(self: Path, *_: Any) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, step, full)
    with pytest.raises(InputError, match="No space left"):
        write_safetensors(weights, ours)
    monkeypatch.undo()
    assert ours.read_bytes() == before
    assert sorted(ours.parent.iterdir()) == there


def test_a_changed_array_of_ours_is_noticed(ours: Path) -> None:
    content = bytearray(ours.read_bytes())
    content[-3] ^= 1
    ours.write_bytes(content)
    assert "not those that were written" in refusal(ours)


@pytest.mark.parametrize(
    ("metadata", "cause"),
    [
        (None, "does not say how its input is preprocessed"),
        ({"allcls_jax": "{"}, "metadata are not understood"),
        ({"allcls_jax": json.dumps({"variant": "vgg11"})}, "metadata are not"),
    ],
)
def test_our_names_without_our_metadata_are_refused(
    metadata: dict[str, str] | None,
    cause: str,
    tiny_arrays: Arrays,
    tmp_path: Path,
) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(tiny_arrays, path, metadata)
    assert cause in refusal(path)


# Bad files


def torch_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")


def npz(path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, kernel=np.ones(3))
    path.write_bytes(buffer.getvalue())


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def other_keras_model(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("conv1_conv", "conv2_block1_1_conv", "probs"):
            file[f"{name}/{name}/kernel:0"] = np.ones((3, 3), np.float32)


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("<!DOCTYPE html>\n<p>"), "is text and begins"),
        (lambda path: path.write_text("é" * 5000), "is text and begins"),
        (lambda path: path.write_text('{"weight_map": {}}'), "in several files"),
        (lambda path: path.write_bytes(bytes(range(256))), "of an unknown kind"),
        (lambda path: path.write_bytes(b"\x80\x04\x95."), "is a pickle"),
        (torch_pickle, "is a pickle of PyTorch"),
        (
            lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
            "is a single numpy array",
        ),
        (npz, "is an archive of numpy arrays"),
        (other_zip, "zip archive without model.weights.h5"),
        (other_keras_model, "holds no VGG16 or VGG19; its layers are conv1_conv, "),
        (lambda path: h5py.File(path, "w").close(), "its layers are none"),
    ],
)
def test_what_is_no_weight_file_is_refused(
    write: Callable[[Path], None], cause: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.h5"
    write(path)
    message = refusal(path)
    assert cause in message
    assert "; give a Keras file" in message  # the remedy


def test_a_file_that_may_not_be_read_is_refused(
    official: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)  # the superuser may read anything
    assert "change its permissions" in refusal(official)


NAME = "block3_conv1/block3_conv1_W_1:0"


def edit(path: Path, value: Any) -> None:
    """Puts another value in the place of `block3_conv1/kernel`."""
    with h5py.File(path, "r+") as file:
        del file[NAME]
        if value is not None:
            file[NAME] = value


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (None, "block3_conv1/kernel: is missing; must have shape (3, 3, 8, 8)"),
        (
            np.ones((8, 8, 3, 3), np.float32),
            "block3_conv1/kernel: has shape (8, 8, 3, 3), must have (3, 3, 8, 8)",
        ),
        (np.ones((3, 3, 8, 8), np.int8), "is of type int8"),
        (np.full((3, 3, 8, 8), "text", h5py.string_dtype()), "is of type object"),
        (np.full((3, 3, 8, 8), np.nan, np.float32), "576 of 576 values are not finite"),
        (np.full((3, 3, 8, 8), 1e300), "576 of 576 values are not finite"),
        (h5py.ExternalLink("other.h5", "/x"), "is missing"),
        (h5py.SoftLink("/nowhere"), "is missing"),
    ],
)
def test_an_array_that_cannot_be_used_is_named(
    value: Any, cause: str, official: Path
) -> None:
    edit(official, value)
    message = refusal(official)
    assert cause in message
    assert "1 problem\n" in message
    assert "again" in message  # the remedy


def test_every_problem_is_listed(official: Path) -> None:
    with h5py.File(official, "r+") as file:
        del file["block2_conv1"]
        del file[NAME]
        file["block3_conv2/block3_conv2_W_1:0"] = np.ones((3, 3, 8, 8), np.float32)
    message = refusal(official)
    assert "4 problems" in message
    for name in ("block2_conv1/kernel", "block2_conv1/bias", "block3_conv1/kernel"):
        assert f"{name}: is missing" in message
    assert "block3_conv2/kernel: is not part of TINY" in message


def test_values_in_another_file_are_not_followed(
    official: Path, tmp_path: Path
) -> None:
    (tmp_path / "raw").write_bytes(bytes(3 * 3 * 8 * 8 * 4))
    with h5py.File(official, "r+") as file:
        del file[NAME]
        file.create_dataset(
            NAME, (3, 3, 8, 8), np.float32, external=[(tmp_path / "raw", 0, 2304)]
        )
    with pytest.raises(InputError, match="lies in another file"):
        read_weights(official)


def test_two_networks_in_one_file_are_refused(official: Path) -> None:
    with h5py.File(official, "r+") as file:
        file.copy("block3_conv1", "twin/block3_conv1")
    message = refusal(official)
    assert "block3_conv1/kernel: is there 2 times" in message
    assert "twin/block3_conv1" in message


@pytest.mark.parametrize("layout", ["official", ".weights.h5", ".keras", "ours"])
def test_damage_never_gives_another_error(
    layout: str,
    writers: dict[str, Any],
    keras_tiny: Any,
    ours: Path,
    tiny_arrays: Arrays,
    tmp_path: Path,
) -> None:
    path = ours
    if layout != "ours":
        path = writers[layout](keras_tiny, tmp_path / "file")
    whole = path.read_bytes()
    for share in np.linspace(0, 1, 20, endpoint=False):
        path.write_bytes(whole[: int(share * len(whole))])
        refusal(path)
    rng = np.random.default_rng(3)
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 8000), 5):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        # A changed value that is finite passes in Keras' files, which have no sums.
        try:
            assert set(read_weights(path).arrays) == set(tiny_arrays)
        except InputError:
            continue
