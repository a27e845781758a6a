"""Baselines on the splits of a run: their promises, files and command."""

import copy
import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from allcls_jax import DISCLAIMER
from allcls_jax.config import (
    Config,
    DataConfig,
    HeadKind,
    ModelConfig,
    ModelName,
    SplitKind,
    SyntheticConfig,
)
from allcls_jax.data import copies, partition_file, readers, synthetic, transforms
from allcls_jax.data.cells import ALL, COLUMNS, CellTable
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.pipeline import PackedImages
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import predictions
from allcls_jax.evaluation.baselines import descriptors
from allcls_jax.evaluation.baselines import evaluate as baselines
from allcls_jax.evaluation.baselines import inputs as baseline_inputs
from allcls_jax.evaluation.baselines.inputs import Uses
from allcls_jax.evaluation.predictions import Run
from allcls_jax.training import inputs

SIZE = 32


def settings(cache: Path, *, num_images: int = 96, **data: object) -> Config:
    """A tiny network on synthetic cells."""
    config = Config(
        cache_dir=str(cache),
        data=DataConfig(
            image_size=SIZE,
            split=SplitKind.OFFICIAL,
            synthetic=SyntheticConfig(num_images=num_images),
        ),
        model=ModelConfig(name=ModelName.TINY, weights="random"),
    )
    config.evaluation.num_resamples = 100
    for name, value in data.items():
        setattr(config.data, name, value)
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Packed cells, features and descriptors for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cells(cache) -> PackedCells:
    """96 cells of 24 patients."""
    return inputs.open_cells(settings(cache))


def divided(table: CellTable, test_fold: int) -> np.ndarray:
    """Official folds; of the other patients every fourth of a class validates."""
    split = np.where(table.fold == test_fold, Split.TEST, Split.TRAIN).astype(object)
    for value in (0, 1):
        rest = (table.label == value) & (table.fold != test_fold)
        chosen = np.unique(table.patient[rest])[::4]
        split[np.isin(table.patient, chosen)] = Split.VALIDATION
    return split


def write_run(
    folder: Path, config: Config, table: CellTable, split: np.ndarray, run: Run
) -> predictions.Predictions:
    """Writes what a run leaves of a model that guesses."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, "group", "split"))
    for row, use in enumerate(split.tolist()):
        record = [column[row] for column in table.columns()]
        writer.writerow((*record, table.patient[row], use))
    (folder / partition_file.PARTITION_FILE).write_text(text.getvalue())
    guess = np.random.default_rng(run.seed).random(len(table))
    found = predictions.join(
        table,
        table.patient,
        {
            use: {int(row): guess[row] for row in np.flatnonzero(split == use)}
            for use in (Split.VALIDATION, Split.TEST)
        },
        **run._asdict(),
    )
    (folder / "predictions.csv").write_text(found.to_csv())
    (folder / "results.json").write_text('{"notes": ["synthetic cells"]}')
    return found


@pytest.fixture(scope="module")
def finished(cache, cells, tmp_path_factory) -> tuple[Path, dict]:
    """A run's folder with its baselines, and what they came to."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    split = divided(cells.table, 0)
    write_run(folder, settings(cache), cells.table, split, Run(0, 0, 3))
    return folder, baselines.evaluate(folder)


def uses_of(table: CellTable, test_fold: int = 0) -> Uses:
    split = divided(table, test_fold)
    rows = {use: np.flatnonzero(split == use) for use in Split}
    return Uses(rows, table.patient)


@pytest.fixture(scope="module")
def pictures(cache, cells) -> baseline_inputs.Pictures:
    """What the baselines see."""
    split = divided(cells.table, 0)
    partition = [
        {name: str(getattr(cells.table, name)[row]) for name in COLUMNS}
        | {"group": cells.table.patient[row], "split": split[row]}
        for row in range(len(cells))
    ]
    (found,) = baseline_inputs.pictures(
        settings(cache), cells, {Run(0, 0, 0): partition}
    )
    return found


def by_key(content: dict) -> dict[str, dict]:
    return {one["key"]: one for one in content["baselines"]}


def test_every_baseline_predicts_the_images_of_the_model(finished):
    folder, content = finished
    model = predictions.read(folder / "predictions.csv")
    assert list(by_key(content)) == [
        "majority",
        "background",
        "cell_area",
        "stain",
        "classical",
        "pooled_features",
    ]
    for key in by_key(content):
        found = predictions.read(folder / "baselines" / f"{key}.csv")
        for name in predictions.HEADER:
            if name != "probability":
                np.testing.assert_array_equal(
                    getattr(found, name), getattr(model, name)
                )


def test_the_file_holds_figures_with_intervals_beside_the_model(finished):
    folder, content = finished
    written = json.loads((folder / "baselines.json").read_text())
    assert written == content
    assert content["disclaimer"] == DISCLAIMER
    assert content["settings"]["num_resamples"] == 100
    assert content["notes"] == ["synthetic cells"]
    model = predictions.read(folder / "predictions.csv").of(Split.TEST)
    expected = roc_auc_score(model.label, model.probability)
    found = content["model"]["figures"]["by_image"]["auroc"]
    assert found["value"] == pytest.approx(expected, abs=1e-12)
    for one in (by_key(content)["cell_area"], content["model"]):
        figure = one["figures"]["by_image"]["weighted_f1"]
        assert figure["low"] < figure["value"] < figure["high"]
        assert 0 <= one["figures"]["by_patient"]["accuracy"]["value"] <= 1
        assert 0 <= one["figures"]["patients_equal"]["auroc"]["value"] <= 1


def test_figures_are_of_the_written_predictions(finished):
    folder, content = finished
    for key, one in by_key(content).items():
        found = predictions.read(folder / "baselines" / f"{key}.csv").of(Split.TEST)
        figures = one["figures"]["by_image"]
        right = (found.probability > 0.5) == (found.label == ALL)
        assert figures["accuracy"]["value"] == pytest.approx(right.mean())
        expected = roc_auc_score(found.label, found.probability)
        assert figures["auroc"]["value"] == pytest.approx(expected, abs=1e-12)


def test_cell_area_ranks_by_area(finished, cells):
    _, content = finished
    test = cells.table.take(np.flatnonzero(cells.table.fold == 0))
    expected = roc_auc_score(test.label, test.area)
    found = by_key(content)["cell_area"]["figures"]["by_image"]["auroc"]["value"]
    assert expected > 0.6
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_majority_class_is_that_of_training(finished, cells):
    folder, _ = finished
    train = divided(cells.table, 0) == Split.TRAIN
    found = predictions.read(folder / "baselines" / "majority.csv")
    np.testing.assert_allclose(found.probability, np.mean(cells.table.label[train]))


def test_the_background_of_synthetic_cells_is_at_chance(finished):
    _, content = finished
    figure = by_key(content)["background"]["figures"]["by_image"]["auroc"]
    assert figure["value"] == 0.5
    assert figure["low"] in (0.5, None)  # of a figure that cannot vary


def test_a_second_time_gives_the_same_bits_and_describes_nothing(finished, monkeypatch):
    folder, content = finished
    before = {path: path.read_bytes() for path in (folder / "baselines").iterdir()}

    def describe(image: np.ndarray) -> np.ndarray:
        raise AssertionError("described again")

    monkeypatch.setattr(descriptors, "describe", describe)
    again = baselines.evaluate(folder)
    assert {**again, "seconds": 0} == {**content, "seconds": 0}
    assert {p: p.read_bytes() for p in (folder / "baselines").iterdir()} == before


@pytest.mark.parametrize("baseline", baselines.BASELINES, ids=lambda b: b.key)
def test_labels_and_groups_of_other_images_change_nothing(baseline, pictures):
    table, uses = pictures.table, pictures.uses[Run(0, 0, 0)]
    values = pictures.values[baseline.key]
    expected = baselines.predict(baseline, values, table.label, uses)
    train = uses.rows[Split.TRAIN]
    others = np.setdiff1d(np.arange(len(table)), train)
    label, group = table.label.copy(), uses.group.copy()
    label[others], group[others] = 1 - label[others], "all one group"
    found = baselines.predict(baseline, values, label, Uses(uses.rows, group))
    assert found == expected


@pytest.mark.parametrize("baseline", baselines.BASELINES, ids=lambda b: b.key)
def test_test_images_change_no_prediction_but_their_own(baseline, pictures):
    """Nothing is scaled, chosen or fitted on them."""
    table, uses = pictures.table, pictures.uses[Run(0, 0, 0)]
    values = pictures.values[baseline.key]
    expected = baselines.predict(baseline, values, table.label, uses)
    changed = values.copy()
    changed[uses.rows[Split.TEST]] = 1e3
    found = baselines.predict(baseline, changed, table.label, uses)
    assert found[Split.VALIDATION] == expected[Split.VALIDATION]


@pytest.mark.parametrize("baseline", baselines.BASELINES, ids=lambda b: b.key)
def test_training_images_do_change_predictions(baseline, pictures):
    table, uses = pictures.table, pictures.uses[Run(0, 0, 0)]
    values = pictures.values[baseline.key]
    expected = baselines.predict(baseline, values, table.label, uses)
    half = {**uses.rows, Split.TRAIN: uses.rows[Split.TRAIN][:-9]}
    found = baselines.predict(baseline, values, table.label, Uses(half, uses.group))
    assert found[Split.TEST] != expected[Split.TEST]


def test_pooled_features_are_means_over_the_picture(cache):
    """The network's own global average pooling gives the same."""
    config = settings(cache, num_images=24, image_size=64)
    cells, rows = inputs.open_cells(config), np.arange(24)
    images = PackedImages(cells, None, 64)
    found = baseline_inputs.Backbone(config, cells).pooled(images, cells.table, rows)
    config.model.head = HeadKind.GAP
    pooled = baseline_inputs.Backbone(config, cells)
    expected = pooled.pooled(images, cells.table, rows)
    assert expected.shape == found.shape
    assert expected.std() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_trained_backbone_is_not_asked(cache, cells, pictures):
    config = settings(cache)
    config.optim.trainable = ((".*", True),)
    config.train.cache_features = False
    images = PackedImages(cells, None, SIZE)
    backbone = baseline_inputs.Backbone(config, cells)
    found = backbone.pooled(images, cells.table, np.arange(3))
    np.testing.assert_array_equal(found, pictures.values["pooled_features"][:3])


@dataclasses.dataclass
class Tagged:
    """Cells with a mark in the corner of nearly all images of one class."""

    cells: PackedCells

    def __post_init__(self):
        self.table = copy.deepcopy(self.cells.table)
        self.table.sha256[:] = [
            hashlib.sha256(f"tagged {name}".encode()).hexdigest()
            for name in self.table.sha256
        ]
        self.size, self.crop, self.source = SIZE, None, self.cells.source

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, row: int) -> np.ndarray:
        image = self.cells[row].copy()
        if self.table.label[row] == ALL and row % 10:
            image[:2, :2] = 9
        return image


def test_a_mark_outside_the_cell_is_found(cache, cells, tmp_path, monkeypatch):
    tagged = Tagged(cells)
    monkeypatch.setattr(baselines.inputs, "open_cells", lambda config: tagged)
    split = divided(tagged.table, 1)
    write_run(tmp_path / "run", settings(cache), tagged.table, split, Run(0, 1, 0))
    content = baselines.evaluate(tmp_path / "run")
    figure = by_key(content)["background"]["figures"]["by_image"]["auroc"]
    assert figure["value"] > 0.85
    assert [note for note in content["notes"] if "outside the cells" in note]


def test_noise_that_jpeg_leaves_is_seen_unless_it_is_removed(cells):
    config = SyntheticConfig(num_images=24)
    file = io.BytesIO()
    picture = Image.fromarray(synthetic.draw(config, 0))
    picture.save(file, "JPEG", quality=75)
    raw = transforms.decode(file.getvalue(), name="a cell")
    seen = dict(
        zip(descriptors.NAMES["background"], descriptors.background(raw), strict=True)
    )
    assert seen["share that is not black"] > 0.005
    clean, _ = transforms.prepare(
        file.getvalue(), name="a cell", max_side=None, crop=None, size=224
    )
    assert not descriptors.background(clean).any()


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The keys of the baselines, once for each fit."""
    fits: list[str] = []

    def counting(one: baselines.Baseline) -> baselines.Baseline:
        def fit(*given: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
            fits.append(one.key)
            return one.fit(*given)

        return dataclasses.replace(one, fit=fit)

    chosen = [one for one in baselines.BASELINES if one.key in ("cell_area", "stain")]
    background = [one for one in baselines.BASELINES if one.key == "background"]
    monkeypatch.setattr(
        baselines, "BASELINES", tuple(map(counting, chosen + background))
    )
    return fits


def test_a_cross_validation_is_fitted_once_for_runs_divided_alike(
    cache, cells, tmp_path, counted
):
    folder = tmp_path / "cv"
    tables = []
    for fold in range(3):
        split = divided(cells.table, fold)
        for seed in (0, 1):
            run = Run(0, fold, seed)
            name = f"repeat0-fold{fold}-seed{seed}"
            tables.append(
                write_run(folder / name, settings(cache), cells.table, split, run)
            )
    (folder / "config.json").write_text(settings(cache).to_json())
    (folder / "predictions.csv").write_text(predictions.concatenate(tables).to_csv())
    (folder / "results.json").write_text('{"notes": []}')
    content = baselines.evaluate(folder)
    assert sorted(counted) == sorted(["cell_area", "stain", "background"] * 3)
    found = predictions.read(folder / "baselines" / "stain.csv")
    passes = [rows for _, rows in found.passes()]
    assert [len(rows.of(Split.TEST)) for rows in passes] == [96, 96]
    np.testing.assert_array_equal(passes[0].probability, passes[1].probability)
    for run, rows in found.runs():
        assert set(rows.of(Split.TEST).fold.tolist()) == {run.test_fold}
    assert any("pooled over folds" in note for note in content["notes"])


def test_turned_copies_are_described_as_they_are_turned(cache):
    config = settings(cache, num_images=97, split=SplitKind.IMAGE_COPIES)
    cells = inputs.open_cells(config)
    partitions = {}
    for repeat in (0, 1):
        _, table = copies.balance(cells, np.arange(97), repeat=repeat)
        assert len(table) == 98
        partitions[Run(repeat, 0, 0)] = [
            {name: str(getattr(table, name)[row]) for name in COLUMNS}
            | {"group": table.patient[row], "split": list(Split)[row % 3]}
            for row in range(98)
        ]
    found = list(baseline_inputs.pictures(config, cells, partitions))
    assert [list(each.uses) for each in found] == [[Run(0, 0, 0)], [Run(1, 0, 0)]]
    for repeat, each in enumerate(found):
        lower, _ = copies.balance(cells, np.arange(97), repeat=repeat)
        assert each.uses[Run(repeat, 0, 0)].rows[Split.TEST].tolist()[-1] == 95
        values = descriptors.describe(lower[0])[np.newaxis]
        for kind in descriptors.NAMES:
            np.testing.assert_array_equal(
                each.values[kind][97:], descriptors.of_kind(values, kind)
            )
        assert np.isfinite(each.values["pooled_features"]).all()


def altered(folder: Path, name: str, change: Callable[[str], str]) -> None:
    path = folder / name
    path.write_text(change(path.read_text()))


@pytest.fixture
def folder(cache, cells, tmp_path) -> Path:
    """A run's folder without baselines."""
    split = divided(cells.table, 0)
    write_run(tmp_path / "run", settings(cache), cells.table, split, Run(0, 0, 0))
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", ["config.json", "predictions.csv", "partition.csv", "results.json"]
)
def test_a_run_that_is_not_whole_is_refused(name, folder):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        baselines.evaluate(folder)


def test_other_cells_than_the_runs_are_refused(folder):
    """One file was written anew since."""
    (row, *_) = csv.DictReader((folder / "partition.csv").read_text().splitlines())
    altered(
        folder,
        "partition.csv",
        lambda text: text.replace(row["sha256"], row["sha256"][::-1]),
    )
    with pytest.raises(InputError, match=rf"{row['image_id']} of [^$]*--data"):
        baselines.evaluate(folder)
    assert not (folder / "baselines").exists()


def test_a_partition_of_other_images_than_were_predicted_is_refused(folder):
    lines = (folder / "partition.csv").read_text().splitlines(keepends=True)
    lost = next(line for line in lines if line.endswith("test\n"))
    altered(folder, "partition.csv", lambda text: text.replace(lost, ""))
    with pytest.raises(InputError, match=f"test image {lost.split(',')[0]}"):
        baselines.evaluate(folder)


def test_a_partition_with_another_label_is_refused(folder):
    altered(folder, "partition.csv", lambda text: text.replace(",1,train", ",0,train"))
    with pytest.raises(InputError, match="another label"):
        baselines.evaluate(folder)


def test_the_command_prints_one_table(folder, cache, counted, capsys):
    argv: Sequence[str] = [str(folder), "--cache", str(cache)]
    assert baselines.main(argv) == 0
    text = capsys.readouterr().out
    for name in ("background only", "cell area", "mean stain colour", "the model"):
        assert text.count(name) == 1, name
    assert "synthetic cells" in text
    assert DISCLAIMER in text


def test_the_users_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys):
    assert baselines.main([str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_cell_area_of_real_cells_tells_the_classes_apart(cnmc_dir):
    """Every eighth image; the whole folds have 0.838, 0.869 and 0.759."""
    _, found = readers.open_source(None, cnmc_dir)
    expected = {0: 0.838, 1: 0.869, 2: 0.759}
    for fold, whole in expected.items():
        chosen = [cell for cell in found if cell.part == "train" and cell.fold == fold]
        area, label = [], []
        for cell in chosen[::8]:
            image = transforms.decode(cell.source.read(), name=cell.source.name)
            clean = transforms.zero_background(image)
            area.append(np.count_nonzero(clean.any(axis=-1)))
            label.append(cell.label)
        assert roc_auc_score(label, area) == pytest.approx(whole, abs=0.05)
