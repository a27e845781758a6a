import dataclasses
import json
import time
from typing import Any

import numpy as np
import pytest

from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import assessment, metrics
from allcls_jax.evaluation.assessment import assess, summarise
from allcls_jax.evaluation.metrics import NAMES
from allcls_jax.evaluation.predictions import Predictions, concatenate
from tests.evaluation.tables import drawn, rows

QUICK: dict[str, Any] = {"num_resamples": 200}

SECTIONS = {
    "settings": dict,
    "counts": dict,
    "warnings": list,
    "figures": dict,
    "confusion_matrix": list,
    "calibration": dict,
    "thresholds": list,
    "abstention": list,
    "roc": dict,
    "precision_recall": dict,
    "histogram": dict,
    "by_fold": list,
    "by_pass": list,
    "spread": dict,
    "patients": list,
    "subgroups": list,
    "within_area": dict,
    "mistakes": list,
}


def widths(entry: dict[str, Any]) -> tuple[float, float]:
    """Widths of the intervals over groups and over images."""
    return entry["high"] - entry["low"], entry["image_high"] - entry["image_low"]


@pytest.fixture(scope="module")
def table() -> Predictions:
    return drawn(14, 12, folds=2, passes=2, images=6)


@pytest.fixture(scope="module")
def found(table) -> dict[str, Any]:
    return assess(table, prevalence=0.2, **QUICK)


def test_an_assessment_has_every_section_and_is_json(found):
    assert {name: type(part) for name, part in found.items()} == SECTIONS
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["settings"] == {
        "prevalence": 0.2,
        "num_resamples": 200,
        "confidence": 0.95,
        "seed": 0,
        "unit": "group",
        "positive": "ALL",
    }


def test_things_are_counted_once(table, found):
    test = table.of(Split.TEST)
    assert found["counts"] == {
        "images": len(set(test.image_id)),
        "patients": 26,
        "groups": 26,
        "patients_all": 14,
        "patients_hem": 12,
        "groups_all": 14,
        "groups_hem": 12,
        "runs": 4,
        "passes": 2,
    }


def test_figures_by_image_are_scikit_learns_averaged_over_passes(table, found):
    passes = [
        metrics.figures(part, prevalence=0.2) for _, part in table.of("test").passes()
    ]
    by_image = found["figures"]["by_image"]
    assert tuple(by_image) == NAMES
    for name, entry in by_image.items():
        expected = np.mean([figures[name] for figures in passes])
        assert entry["value"] == pytest.approx(expected, abs=1e-12), name
        assert entry["low"] < entry["value"] < entry["high"], name
        assert entry["image_low"] < entry["value"] < entry["image_high"], name
    assert found["spread"]["auroc"]["mean"] == by_image["auroc"]["value"]


def test_patients_equal_weighs_every_patient_the_same(table, found):
    expected: dict[str, list[Any]] = {name: [] for name in NAMES}
    for _, part in table.of("test").passes():
        sizes = {p: np.sum(part.patient == p) for p in set(part.patient.tolist())}
        weight = np.array([1 / sizes[p] for p in part.patient.tolist()])
        measured = metrics.measure(
            part.label, part.probability, weight=weight, prevalence=0.2
        )
        for name, value in measured.items():
            expected[name].append(value)
    for name, entry in found["figures"]["patients_equal"].items():
        assert entry["value"] == pytest.approx(np.mean(expected[name])), name
        assert entry["low"] < entry["value"] < entry["high"], name
    # One of them by hand: the mean over patients of their share called rightly.
    shares = []
    for _, part in table.of("test").passes():
        right = (part.probability > 0.5) == (part.label == 1)
        shares += [right[part.patient == p].mean() for p in set(part.patient.tolist())]
    equal = found["figures"]["patients_equal"]["accuracy"]["value"]
    assert equal == pytest.approx(np.mean(shares))


def test_by_patient_is_of_mean_probabilities(table, found):
    values = []
    for _, part in table.of("test").passes():
        patients = sorted(set(part.patient.tolist()))
        mean = [part.probability[part.patient == p].mean() for p in patients]
        label = [part.label[part.patient == p][0] for p in patients]
        values.append(metrics.figures(rows(label, mean), prevalence=0.2))
    by_patient = found["figures"]["by_patient"]
    assert set(by_patient) == set(NAMES) - {
        "ece",
        "calibration_slope",
        "calibration_intercept",
    }
    for name, entry in by_patient.items():
        expected = np.mean([figures[name] for figures in values])
        assert entry["value"] == pytest.approx(expected), name


def test_summarise_is_the_beginning_of_assess(table, found):
    summary = summarise(table, prevalence=0.2, **QUICK)
    assert set(summary) == {"settings", "counts", "warnings", "figures"}
    for name in ("settings", "counts", "figures", "warnings"):
        assert summary[name] == found[name]


def test_a_seed_repeats_its_intervals_and_another_does_not(table, found):
    assert assess(table, prevalence=0.2, **QUICK) == found
    other = summarise(table, prevalence=0.2, seed=1, **QUICK)["figures"]
    mine = found["figures"]
    assert other["by_image"]["auroc"]["value"] == mine["by_image"]["auroc"]["value"]
    assert other["by_image"]["auroc"]["low"] != mine["by_image"]["auroc"]["low"]


def assert_close(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, part in one.items():
            assert_close(part, other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_close(first, second, f"{where}/{number}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-9), where
    else:
        assert one == other, where


def test_the_order_of_the_rows_is_of_no_account(table, found):
    order = np.random.default_rng(0).permutation(len(table))
    assert_close(assess(table.take(order), prevalence=0.2, **QUICK), found)


def test_what_a_patient_has_in_common_widens_the_interval_over_groups():
    strong = summarise(drawn(20, 20, effect=2.0), **QUICK)["figures"]["by_image"]
    none = summarise(drawn(20, 20, effect=0.0), **QUICK)["figures"]["by_image"]
    for name in ("accuracy", "auroc", "brier"):
        groups, images = widths(strong[name])
        assert groups > 1.8 * images, name
        groups, images = widths(none[name])
        assert groups == pytest.approx(images, rel=0.4), name


def test_patients_of_one_group_are_one_witness():
    table = drawn(20, 20, effect=2.0)
    number = np.array([int(patient[1:]) for patient in table.patient.tolist()])
    pairs = dataclasses.replace(table, group=np.array([f"g{i // 2}" for i in number]))
    alone = summarise(table, **QUICK)
    joined = summarise(pairs, **QUICK)
    assert joined["counts"]["groups"] == 20
    assert joined["counts"]["patients"] == 40
    entries = [x["figures"]["by_image"]["accuracy"] for x in (alone, joined)]
    assert entries[0]["value"] == entries[1]["value"]
    assert entries[0]["low"] != entries[1]["low"]
    assert entries[0]["image_low"] == entries[1]["image_low"]


def test_more_seeds_of_the_same_patients_do_not_narrow_an_interval():
    one = drawn(12, 12)
    table = concatenate(
        [dataclasses.replace(one, seed=one.seed + seed) for seed in range(3)]
    )
    first, second = (summarise(x, **QUICK)["figures"] for x in (one, table))
    for way in first:
        for name, entry in first[way].items():
            for key, value in entry.items():
                assert second[way][name][key] == pytest.approx(value), (way, name)


def test_a_resample_is_the_same_in_every_pass():
    """A pass and its opposite have an accuracy of one half together, in each."""
    one = drawn(12, 12)
    opposite = dataclasses.replace(
        one, probability=1 - one.probability, seed=one.seed + 1
    )
    table = concatenate([one, opposite])
    entry = summarise(table, **QUICK)["figures"]["by_image"]["accuracy"]
    assert entry["value"] == pytest.approx(0.5)
    assert "0.5000 in every resample" in entry["reason"]


def test_patients_of_one_image_each_have_the_same_figures_in_every_way():
    found = summarise(drawn(20, 15, images=1), **QUICK)["figures"]
    for name, entry in found["by_patient"].items():
        for key in ("value", "low", "high"):
            assert entry[key] == pytest.approx(found["by_image"][name][key]), name
            assert entry[key] == pytest.approx(found["patients_equal"][name][key])


def test_curves_histogram_and_patients_belong_to_the_same_rows(table, found):
    test = table.of("test")
    roc = found["roc"]
    assert len(roc["fpr"]) == len(roc["tpr"]) == len(roc["low"]) == 101
    assert roc["tpr"] == sorted(roc["tpr"])
    area = np.trapezoid(roc["tpr"], roc["fpr"])
    assert area == pytest.approx(found["spread"]["auroc"]["mean"], abs=0.01)
    curve = found["precision_recall"]
    assert len(curve["recall"]) == len(curve["precision"]) == len(curve["high"]) == 100
    for low, high, name in (
        (roc["low"], roc["high"], roc["tpr"]),
        (curve["low"], curve["high"], curve["precision"]),
    ):
        assert np.all(np.array(low) <= np.array(high))
        inside = (np.array(low) <= name) & (np.array(name) <= np.array(high))
        assert inside.mean() > 0.9
    histogram = found["histogram"]
    assert len(histogram["edges"]) == 21
    assert sum(histogram["ALL"]) == np.sum(test.label == 1)
    assert sum(histogram["HEM"]) == np.sum(test.label == 0)
    assert len(found["patients"]) == 26


def test_a_leaky_table_a_small_one_and_a_pooled_one_are_warned_of(found):
    assert any("pool 2 test folds" in line for line in found["warnings"])
    assert not any("fewer than 10" in line for line in found["warnings"])
    few = summarise(drawn(12, 8), **QUICK)["warnings"]
    assert [line for line in few if "fewer than 10" in line] == [
        "only 8 groups (8 patients) have test images of HEM: with fewer than 10 the "
        "intervals are too narrow"
    ]
    assert not any("pool" in line for line in few)
    table = drawn()
    leaky = dataclasses.replace(
        table,
        group=np.where(table.split == "validation", "p0", table.group),
    )
    assert any("flatter" in line for line in summarise(leaky, **QUICK)["warnings"])
    assert not any("flatter" in line for line in few)


def test_passes_of_other_images_are_warned_of():
    one = drawn()
    cut = dataclasses.replace(one, seed=one.seed + 1).take(np.arange(10, len(one)))
    warnings = summarise(concatenate([one, cut]), **QUICK)["warnings"]
    assert any("do not test the same images" in line for line in warnings)


def test_patients_of_both_classes_are_left_out_by_patient_and_told():
    table = rows(
        [1, 1, 0, 0, 1, 0],
        [0.9, 0.4, 0.2, 0.6, 0.1, 0.2],
        patient=["a", "b", "c", "d", "e", "e"],
    )
    found = summarise(table, **QUICK)
    assert any("1 patient(s) have images of both" in x for x in found["warnings"])
    assert any("only ones of their kind" in x for x in found["warnings"])
    assert found["figures"]["by_patient"]["accuracy"]["value"] == 0.5
    mixed = rows([1, 0], [0.9, 0.2], patient=["e", "e"])
    entries = summarise(mixed, **QUICK)["figures"]["by_patient"]
    assert {entry["value"] for entry in entries.values()} == {None}
    assert "both classes" in entries["auroc"]["reason"]


def test_one_class_alone_leaves_an_explicit_undefined():
    found = assess(rows([1] * 6, [0.9, 0.2, 0.8, 0.3, 0.7, 1.0]), **QUICK)
    json.dumps(found, allow_nan=False)
    entries = found["figures"]["by_image"]
    assert entries["auroc"]["value"] is None
    assert entries["auroc"]["reason"] == "no image is HEM"
    assert entries["sensitivity"]["low"] is not None
    assert entries["accuracy"]["value"] == pytest.approx(4 / 6)
    assert entries["accuracy"]["low"] is entries["accuracy"]["image_low"] is None
    assert "and there is none" in entries["accuracy"]["reason"]
    assert found["roc"] == {
        "fpr": [],
        "tpr": [],
        "low": [],
        "high": [],
        "reason": "no image is HEM",
    }
    assert any("no image is HEM" in line for line in found["warnings"])


def test_fewer_than_two_patients_of_a_class_leave_no_interval():
    table = rows([1, 1, 1, 0, 0], [0.9, 0.4, 0.8, 0.2, 0.6], patient=list("aabcc"))
    found = assess(table, **QUICK)
    entries = found["figures"]["by_image"]
    for name in set(NAMES) - {"sensitivity"}:
        entry = entries[name]
        assert entry["value"] is not None
        assert entry["low"] is entry["high"] is None
        assert entry["reason"] == (
            "an interval needs two groups with images of HEM, and there is 1"
        ), name
    assert entries["sensitivity"]["low"] is not None
    assert entries["accuracy"]["image_low"] is not None, "over images there is one"
    assert found["roc"]["low"] == []
    assert found["roc"]["tpr"] != []
    assert any("groups with images of HEM" in line for line in found["warnings"])


def test_a_perfect_score_gets_no_interval_that_looks_certain():
    found = assess(rows([1, 1, 1, 0, 0], [0.9, 0.8, 0.8, 0.2, 0.1]), **QUICK)
    entry = found["figures"]["by_image"]["accuracy"]
    assert entry["value"] == 1.0
    assert entry["low"] is entry["image_low"] is None
    assert "1.0000 in every resample" in entry["reason"]


def test_resamples_that_leave_a_figure_undefined_are_counted():
    """Of PPV: that one image of two patients is the only one called ALL."""
    table = rows([1, 1, 0, 0], [0.9, 0.4, 0.2, 0.1])
    found = summarise(table, **QUICK)
    entry = found["figures"]["by_image"]["ppv"]
    assert 20 < entry["left_out"] < 90, "a quarter of 200"
    assert any("in which it is undefined" in line for line in found["warnings"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prevalence": 0.0}, "prevalence = 0.0"),
        ({"prevalence": 1.0}, "prevalence"),
        ({"prevalence": float("nan")}, "prevalence = nan"),
        ({"confidence": 1.5}, "confidence = 1.5"),
        ({"num_resamples": 99}, "num_resamples = 99"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    for function in (assess, summarise):
        with pytest.raises(InputError, match=message):
            function(drawn(), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient": np.array(["a", "", "b"])}, "patient = ''"),
        ({"probability": np.array([0.5, np.nan, 0.1])}, "probability = nan"),
        ({"probability": np.array([0.5, 1.1, 0.1])}, "probability = 1.1"),
        ({"image_id": np.array(["i", "i", "j"])}, "more than once"),
    ],
)
def test_a_broken_table_is_refused(change, message):
    table = dataclasses.replace(rows([1, 0, 0], [0.9, 0.3, 0.6]), **change)
    with pytest.raises(InputError, match=message):
        assess(table, **QUICK)


def odd(rng: np.random.Generator) -> Predictions:
    """A small table of some odd shape: few images, ties, 0 and 1, lone classes."""
    tables = []
    number = int(rng.integers(1, 12))
    label = rng.integers(2, size=number) if rng.random() < 0.8 else np.ones(number)
    patients = rng.integers(1, number + 2, size=number).astype(str)
    groups = {patient: str(rng.integers(4)) for patient in set(patients.tolist())}
    for seed in range(rng.integers(1, 3)):
        for split in (Split.TEST, Split.VALIDATION)[: rng.integers(1, 3)]:
            probability = rng.choice(
                [rng.random(number), rng.integers(3, size=number) / 2]
            )
            given = rows(
                label,
                probability,
                patient=patients.tolist(),
                group=[groups[patient] for patient in patients.tolist()],
                split=split,
                seed=seed,
            )
            given.test_fold[:] = rng.integers(2)
            given.area[:] = rng.integers(5, size=number)
            given.fold[:] = rng.integers(-1, 2, size=number)
            tables.append(given)
    return concatenate(tables)


@pytest.mark.parametrize("seed", range(25))
def test_tables_of_odd_shapes_give_numbers_or_undefined_and_never_nan(seed):
    table = odd(np.random.default_rng(seed))
    found = assess(table, num_resamples=100)
    json.dumps(found, allow_nan=False)
    header, body = assessment.rows(found)
    for row in body:
        assert len(row) == len(header)
        assert not any("nan" in cell or "inf" in cell for cell in row)
    for way, entries in found["figures"].items():
        for name, entry in entries.items():
            if entry["value"] is None or entry["low"] is None:
                assert entry["reason"], (way, name)
            else:
                assert entry["low"] < entry["high"], (way, name)


def test_the_table_for_the_terminal_fits_and_tells_the_figures(found):
    header, body = assessment.rows(found)
    assert [row[0] for row in body] == [
        name.replace("calibration_", "calib. ").replace("_", " ") for name in NAMES
    ]
    columns = zip(header, *body, strict=True)
    width = sum(
        2 + max(len(line) for cell in column for line in cell.split("\n"))
        for column in columns
    )
    assert width <= 80
    by_image = found["figures"]["by_image"]["auroc"]
    row = next(row for row in body if row[0] == "auroc")
    assert row[1] == f"{by_image['value']:.3f}"
    assert row[2] == f"{by_image['low']:.3f}…{by_image['high']:.3f}"
    assert row[3] == f"{by_image['image_low']:.3f}…{by_image['image_high']:.3f}"
    assert body[-1][-1] == "–"


def test_undefined_figures_and_intervals_are_told_as_such():
    _, body = assessment.rows(assess(rows([1, 1], [0.9, 0.2]), **QUICK))
    told = {row[0]: row[1:4] for row in body}
    assert told["auroc"] == ("undefined", "", "")
    assert told["accuracy"] == ("0.500", "undefined", "undefined")
    assert assessment.interval({"value": None, "low": None, "high": None}) == (
        "undefined"
    )
    entry = {"difference": -0.0321, "low": -0.05, "high": 0.01}
    assert assessment.interval(entry, "difference") == "-0.032 [-0.050, 0.010]"
    assert assessment.interval({"value": 1.0, "low": None, "high": None}) == "1.000"


def test_ten_thousand_images_take_seconds():
    """A tenth of the resamples, in seconds of the processor."""
    table = drawn(47, 26, images=137)
    assert len(table.of("test")) > 9_000
    started = time.process_time()
    assess(table, **QUICK)
    assert time.process_time() - started < 5
