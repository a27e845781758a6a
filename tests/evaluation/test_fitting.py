import dataclasses

import numpy as np
import pytest

from allcls_jax.data.splits import Split
from allcls_jax.evaluation import calibration, fitting, metrics, views
from allcls_jax.evaluation.predictions import Predictions, Run, concatenate
from tests.evaluation.tables import drawn, rows


def given_of(table: Predictions) -> views.Given:
    return views.given(
        table, prevalence=0.5, num_resamples=200, seed=0, confidence=0.95
    )


def altered(table: Predictions, split: str, seed: int = 5) -> Predictions:
    """The table with other probabilities in one split."""
    other = np.random.default_rng(seed).random(len(table))
    return dataclasses.replace(
        table, probability=np.where(table.split == split, other, table.probability)
    )


def test_no_test_row_enters_a_fit():
    table = drawn(folds=2, passes=2)
    assert fitting.fit(altered(table, Split.TEST)) == fitting.fit(table)


def test_validation_rows_are_what_is_fitted_on():
    table = drawn(folds=2, passes=2)
    one, other = fitting.fit(table), fitting.fit(altered(table, Split.VALIDATION))
    for run in one.temperature:
        assert one.temperature[run] != other.temperature[run]
        for name in ("youden", "sensitivity_0.95"):
            assert one.thresholds[name][run] != other.thresholds[name][run]
        assert one.thresholds["0.5"][run].value == 0.5


def test_every_run_has_its_own_fit():
    table = drawn(folds=2, passes=2)
    fits = fitting.fit(table)
    assert list(fits.temperature) == [run for run, _ in table.runs()]
    for run, part in table.runs():
        validation = part.of(Split.VALIDATION)
        label, probability = validation.label, validation.probability
        assert fits.temperature[run] == calibration.temperature(label, probability)
        assert fits.thresholds["youden"][run] == calibration.youden(label, probability)
        assert fits.thresholds["sensitivity_0.95"][run] == calibration.at_sensitivity(
            label, probability, 0.95
        )


def test_a_temperature_is_applied_to_the_test_rows_of_its_run():
    table = drawn(folds=2, passes=2)
    given, fits = given_of(table), fitting.fit(table)
    found = concatenate(fitting.calibrated(given, fits))
    assert set(found.split) == {"test"}
    for run, part in found.runs():
        value = fits.temperature[run].value
        assert value is not None
        before = dict(given.test.runs())[run]
        np.testing.assert_array_equal(part.image_id, before.image_id)
        np.testing.assert_allclose(
            part.probability, calibration.calibrate(before.probability, value)
        )


def test_a_threshold_realises_its_figures_on_the_test_rows():
    table = drawn(folds=2)
    given, fits = given_of(table), fitting.fit(table)
    found = {entry["name"]: entry for entry in fitting.thresholds(given, fits)}
    assert list(found) == ["0.5", "youden", "sensitivity_0.95"]
    test = given.test
    for name, entry in found.items():
        limit = np.array(
            [
                fits.thresholds[name][Run(0, fold, 0)].value
                for fold in test.test_fold.tolist()
            ]
        )
        called = test.probability > limit
        expected = metrics.measure(test.label, test.probability, called=called)
        for key, figure in entry["figures"].items():
            assert figure["value"] == pytest.approx(expected[key]), (name, key)
            assert figure["low"] <= figure["value"] <= figure["high"], (name, key)
        assert entry["confusion_matrix"] == metrics.confusion_matrix(test.label, called)
        assert [value["value"] for value in entry["values"]] == [
            fits.thresholds[name][Run(0, fold, 0)].value for fold in range(2)
        ]
    assert set(found["youden"]["figures"]) == set(fitting.THRESHOLD_NAMES)
    assert found["youden"]["fitted_on"] == "validation patients"
    assert found["0.5"]["fitted_on"] == "-"


def test_without_validation_rows_nothing_is_fitted_and_it_is_said():
    table = drawn(validation=False)
    given, fits = given_of(table), fitting.fit(table)
    assert "1 of 1 run(s) have no temperature" in fits.warnings()[0]
    assert "there are no validation images" in fits.warnings()[0]
    (after,) = fitting.calibrated(given, fits)
    np.testing.assert_array_equal(after.probability, given.test.probability)
    half, youden, sensitive = fitting.thresholds(given, fits)
    assert half["figures"]["accuracy"]["value"] is not None
    for entry in (youden, sensitive):
        assert entry["values"][0]["value"] is None
        assert entry["confusion_matrix"] is None
        for figure in entry["figures"].values():
            assert figure["value"] is figure["low"] is figure["high"] is None
            assert "no validation images" in figure["reason"]


def test_calibration_tells_before_from_after():
    table = drawn(20, 14)
    logits = 4 * np.log(table.probability / (1 - table.probability))
    table = dataclasses.replace(table, probability=1 / (1 + np.exp(-logits)))
    given, fits = given_of(table), fitting.fit(table)
    after = fitting.calibrated(given, fits)
    view = given.view((*metrics.NAMES, "log_loss"))
    before = given.entries({"": view})[""]
    found = fitting.calibration(given, fits, after, before)
    assert found["temperature"] == [
        {
            "repeat": 0,
            "test_fold": 0,
            "seed": 0,
            "value": fits.temperature[Run(0, 0, 0)].value,
        }
    ]
    expected = metrics.measure(
        given.test.label, after[0].probability, names=(*metrics.NAMES, "log_loss")
    )
    for key, name in fitting.CALIBRATION_NAMES.items():
        assert found["before"][key] is before[name]
        assert found["after"][key]["value"] == pytest.approx(expected[name])
    for key in ("brier", "ece", "log_loss"):
        assert found["after"][key]["value"] < found["before"][key]["value"]
    # One run: its logits divided by T have T times the slope.
    assert found["after"]["slope"]["value"] == pytest.approx(
        found["before"]["slope"]["value"] * found["temperature"][0]["value"], rel=1e-6
    )


def test_reliability_bins_hold_all_images_and_surround_their_share():
    table = drawn(20, 14, ties=True)
    given, fits = given_of(table), fitting.fit(table)
    before = {name: {} for name in fitting.CALIBRATION_NAMES.values()}
    bins = fitting.calibration(given, fits, fitting.calibrated(given, fits), before)[
        "reliability_before"
    ]
    test = given.test
    assert len(bins) == 10
    assert sum(point["count"] for point in bins) == pytest.approx(len(test), abs=0.6)
    mean = np.mean([point["mean_probability"] for point in bins])
    assert mean == pytest.approx(np.mean(test.probability))
    share = np.mean([point["share_all"] for point in bins])
    assert share == pytest.approx(np.mean(test.label))
    for point in bins:
        assert 0 <= point["low"] <= point["share_all"] <= point["high"] <= 1


def test_the_abstention_curve_ends_at_the_error_of_all_images():
    table = drawn(folds=2, passes=2)
    given, fits = given_of(table), fitting.fit(table)
    after = fitting.calibrated(given, fits)
    points = fitting.abstention(given, after)
    assert [point["coverage"] for point in points] == [
        pytest.approx(i / 20) for i in range(1, 21)
    ]
    errors = [1 - metrics.figures(part)["accuracy"] for _, part in given.test.passes()]
    assert points[-1]["error"] == pytest.approx(np.mean(errors))
    # By hand at half the images, of calibrated confidence.
    halves = []
    for part in after:
        confidence = np.abs(part.probability - 0.5)
        wrong = (part.probability > 0.5) != (part.label == 1)
        order = np.argsort(-confidence)
        exact = np.interp(
            len(part) / 2, np.arange(len(part) + 1), np.append(0, wrong[order].cumsum())
        )
        halves.append(exact / (len(part) / 2))
    assert points[9]["error"] == pytest.approx(np.mean(halves))
    assert points[9]["error"] < points[-1]["error"]
    for point in points:
        assert point["low"] <= point["error"] <= point["high"]


def test_the_calls_of_an_abstention_curve_are_those_of_the_model():
    """A temperature must not round a probability just above a half down to it."""
    just_above = float(np.nextafter(0.5, 1))
    validation = rows([1, 0, 1, 0], [0.999, 0.999, 0.99, 0.001], split="validation")
    table = concatenate([validation, rows([1, 0], [just_above, 0.2])])
    given, fits = given_of(table), fitting.fit(table)
    after = fitting.calibrated(given, fits)
    assert after[0].probability[0] == 0.5
    assert fitting.abstention(given, after)[-1]["error"] == 0


def test_curves_of_one_class_have_no_band():
    given = given_of(rows([1, 1, 1], [0.9, 0.3, 0.6]))
    fits = fitting.fit(given.test)
    for point in fitting.abstention(given, fitting.calibrated(given, fits)):
        assert point["low"] is point["high"] is None
        assert point["error"] is not None
