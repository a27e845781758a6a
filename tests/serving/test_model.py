import concurrent.futures
import dataclasses
import json
import shutil
import zipfile

import numpy as np
import pytest
from scipy import special

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.data.cells import ALL
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import predictions
from allcls_jax.serving.model import Model, open_model

CELLS = synthetic.cells(SyntheticConfig(num_images=96))


def _rewrite(folder, out, **changes):
    """Copies a model directory with other entries in `model.json`."""
    shutil.copytree(folder, out)
    record = json.loads((out / "model.json").read_text())
    (out / "model.json").write_text(json.dumps(record | changes))
    return out


def test_it_gives_what_training_wrote_for_each_test_image(tiny_run, tiny_model):
    """From the encoded pictures on, the same probabilities as `predictions.csv`."""
    table = predictions.read(tiny_run / "predictions.csv").of(Split.TEST)
    sources = {cell.image_id: cell.source for cell in CELLS}
    images = np.stack(
        [tiny_model.read(sources[i].read(), name=i).image for i in table.image_id]
    )
    found = tiny_model.probabilities(images)
    temperature = tiny_model.classifier.temperature
    expected = special.expit(special.logit(table.probability) / temperature)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_thresholds_are_on_the_calibrated_scale(tiny_run, tiny_model):
    """An image is called ALL by both scales or by none."""
    table = predictions.read(tiny_run / "predictions.csv").of(Split.TEST)
    told = json.loads((tiny_run / "evaluation.json").read_text())["thresholds"]
    temperature = tiny_model.classifier.temperature
    calibrated = special.expit(special.logit(table.probability) / temperature)
    for entry in told:
        value = entry["values"][0]["value"]
        if value is not None:
            called = calibrated > tiny_model.thresholds[entry["name"]]
            np.testing.assert_array_equal(called, table.probability > value)


def test_a_row_does_not_depend_on_how_many_there_are(tiny_model):
    images = tiny_model.check.images
    many = tiny_model.probabilities(np.concatenate([images] * 3))
    one = np.concatenate([tiny_model.probabilities(images[i : i + 1]) for i in (0, 7)])
    np.testing.assert_array_equal(many[[0, 7]], one)
    np.testing.assert_allclose(many[:16], tiny_model.check.probability, atol=1e-5)
    assert tiny_model.probabilities(images[:0]).shape == (0,)


def test_a_workdir_a_folder_and_a_zip_are_the_same_model(tiny_run, tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as file:
        for path in (tiny_run / "model").iterdir():
            file.write(path, f"anything/model/{path.name}")
    opened = [open_model(p) for p in (tiny_run, tiny_run / "model", tmp_path / "m.zip")]
    assert len({model.sha256 for model in opened}) == 1
    expected = opened[0].logits(opened[0].check.images)
    np.testing.assert_array_equal(expected, opened[2].logits(opened[0].check.images))
    assert opened[0].notes == ("synthetic cells", "random backbone weights")


def test_a_run_without_a_model_directory_gets_it_from_its_checkpoint(
    tiny_run, tiny_model, tmp_path
):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("model"))
    made = open_model(copy)
    assert (copy / "model" / "model.json").exists()
    for name in ("logits", "probability", "images"):
        np.testing.assert_array_equal(
            getattr(made.check, name), getattr(tiny_model.check, name)
        )
    shutil.rmtree(copy / "model")
    assert open_model(copy).sha256 == made.sha256, "another model each time"


def test_processes_that_make_it_at_once_do_not_disturb_each_other(tiny_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("model"))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        opened = list(pool.map(open_model, [copy] * 3))
    assert len({model.sha256 for model in opened}) == 1
    assert not list(copy.glob(".model*"))


def test_probabilities_without_a_temperature_are_not_called_calibrated(
    tiny_run, tmp_path
):
    """Validation images all called rightly say nothing of how sure to be."""
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("model"))
    table = predictions.read(copy / "predictions.csv")
    probability = np.where(table.label == ALL, 0.9, 0.1)
    certain = dataclasses.replace(table, probability=probability)
    (copy / "predictions.csv").write_text(certain.to_csv())
    model = open_model(copy)
    assert model.classifier.temperature == 1
    assert any(
        note.startswith("probabilities are not calibrated: ") for note in model.notes
    )


@pytest.mark.parametrize("file", ["model.safetensors", "check_cells.safetensors"])
def test_a_changed_byte_is_found(tiny_model_dir, tmp_path, file):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model_dir, copy)
    content = bytearray((copy / file).read_bytes())
    content[-1] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{file} is not what was written"):
        open_model(copy)


def test_a_cut_off_zip_and_a_missing_file_are_found(tiny_model_dir, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model_dir, copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"the model is damaged .*model\.safetensors"):
        open_model(copy)
    shutil.make_archive(str(tmp_path / "m"), "zip", tiny_model_dir)
    whole = (tmp_path / "m.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="holds no model"):
        open_model(tmp_path / "cut.zip")


def test_a_model_of_another_version_says_what_differs(tiny_model_dir, tmp_path):
    newer = _rewrite(
        tiny_model_dir, tmp_path / "new", format=9, package="allcls_jax 7.1"
    )
    with pytest.raises(InputError, match=r"format 9, .*allcls_jax 7\.1.* reads format"):
        open_model(newer)
    # The same format works, whatever else the other version has written.
    other = _rewrite(
        tiny_model_dir, tmp_path / "old", package="allcls_jax 0.0.9", extra=1
    )
    assert open_model(other).self_check() < 1e-4


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ("temperature", "warm", "warm"),
        ("temperature", -1.0, "temperature = -1"),
        ("temperature", 0.0, "temperature = 0"),
        ("temperature", float("nan"), "temperature = nan"),
        ("temperature", 7.0, "the check cells have other probabilities"),
        ("thresholds", {"0.5": 3.0}, r"threshold 0\.5 = 3"),
        ("validation", [], "101 probabilities"),
        ("validation", [2.0] * 101, "101 probabilities"),
        ("domain", {"area": 3}, "not iterable"),
        ("model", {}, "KeyError"),
    ],
)
def test_wrong_entries_are_told(tiny_model_dir, tmp_path, entry, value, told):
    bad = _rewrite(tiny_model_dir, tmp_path / "bad", **{entry: value})
    with pytest.raises(InputError, match=f"the model is damaged .*{told}"):
        open_model(bad)


def test_what_is_no_model_is_told(tiny_model_dir, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"there is no model\.json"):
        open_model(tmp_path / "empty")
    with pytest.raises(InputError, match="is no folder and no zip"):
        open_model(tiny_model_dir / "model.json")


def test_the_self_check_finds_a_network_that_computes_otherwise(tiny_model_dir):
    model = open_model(tiny_model_dir)
    assert model.self_check() < 1e-4
    kernel = model._params["dense_3"]["kernel"]
    model._params["dense_3"]["kernel"] = -kernel
    with pytest.raises(InputError, match="check cells give other outputs"):
        model.self_check()


def _warnings(model: Model, image: np.ndarray) -> tuple[str, ...]:
    return model.read(transforms.encode_png(image), name="x").warnings


def test_what_is_no_cell_of_the_kind_trained_on_is_warned_of(tiny_model):
    usual = [cell.source.read() for cell in CELLS[::8]]
    told = [tiny_model.read(data, name="x").warnings for data in usual]
    assert sum(map(bool, told)) <= 1, told
    cell = synthetic.draw(SyntheticConfig(), 3)
    photograph = np.random.default_rng(0).integers(90, 255, (60, 60, 3)).astype("u1")
    assert _warnings(tiny_model, photograph) == (
        "not a segmented cell: the background is not black",
    )
    assert _warnings(tiny_model, np.zeros((40, 40, 3), "u1")) == (
        "the picture is empty",
    )
    (small,) = _warnings(tiny_model, transforms.resize(cell, 100))
    assert small.startswith("smaller than the training cells")
    green = np.where(cell.any(-1, keepdims=True), [30, 200, 30], 0).astype("u1")
    assert "stained or lit otherwise than the training cells" in _warnings(
        tiny_model, green
    )


def test_decision_uncertainty_and_abstention(tiny_model):
    cell = tiny_model.read(CELLS[0].source.read(), name="x")

    def of(probability, **kwargs):
        return tiny_model.prediction(
            "x", cell, probability, **{"threshold": 0.5, **kwargs}
        )

    assert of(0.5).decision == "HEM"
    assert of(0.5).uncertainty == pytest.approx(1)
    assert of(0.9).uncertainty == pytest.approx(0.469, abs=1e-3)
    assert of(0.51).decision == "ALL"
    assert of(0.51, threshold=0.6).decision == "HEM"
    # At the threshold there is no distance at all, and full coverage decides even that.
    assert of(0.5, coverage=0.5).abstain
    assert not of(0.5, coverage=1.0).abstain
    assert not of(1e-9, coverage=0.5).abstain
    share = np.mean(
        [of(p, coverage=0.7).abstain for p in tiny_model.record["validation"]]
    )
    assert share == pytest.approx(0.3, abs=0.03)
    with pytest.raises(InputError, match="--coverage=0"):
        of(0.5, coverage=0.0)


@pytest.mark.parametrize("text", ["half", "1.0", "0", "nan", ""])
def test_a_threshold_is_a_name_or_a_probability(tiny_model, text):
    with pytest.raises(InputError, match=rf"--threshold={text}: must be a number"):
        tiny_model.threshold(text)
    assert tiny_model.threshold(None) == 0.5
    assert tiny_model.threshold("0.25") == 0.25
    assert tiny_model.threshold("youden") == tiny_model.thresholds["youden"]
