import dataclasses
import json

import numpy as np
import pytest
from sklearn import metrics as sk

from allcls_jax.evaluation import metrics
from allcls_jax.evaluation.metrics import NAMES, Undefined
from tests.evaluation.tables import drawn, rows

KEYS = {"undefined", "num_images", "num_patients", "num_groups", "confusion_matrix"}


def test_the_figures_of_a_table_worked_by_hand():
    # Of four ALL three are called so, of six HEM two are.
    table = rows(
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [0.9, 0.8, 0.7, 0.2, 0.9, 0.6, 0.5, 0.3, 0.1, 0.0],
        patient=list("aabbccddee"),
        group=list("ggggccddee"),
    )
    found = metrics.figures(table, prevalence=0.1)
    assert found["confusion_matrix"] == [[3, 1], [2, 4]]
    assert found["num_images"] == 10
    assert found["num_patients"] == 5
    assert found["num_groups"] == 4
    assert found["undefined"] == {}
    expected = {
        "accuracy": 0.7,
        "sensitivity": 3 / 4,
        "specificity": 4 / 6,
        "balanced_accuracy": (3 / 4 + 4 / 6) / 2,
        "weighted_f1": 0.4 * (6 / 9) + 0.6 * (8 / 11),
        "mcc": (3 * 4 - 2 * 1) / np.sqrt(5 * 5 * 4 * 6),
        # Wins of the 24 pairs: 5.5, 5, 5, 2.
        "auroc": 17.5 / 24,
        # One of the ten in a hundred: 0.075 rightly, 0.3 wrongly.
        "ppv": 0.075 / (0.075 + 0.3),
        "npv": 0.6 / (0.6 + 0.025),
        "brier": np.mean([0.01, 0.04, 0.09, 0.64, 0.81, 0.36, 0.25, 0.09, 0.01, 0.0]),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_every_name_has_a_number_and_the_table_is_json():
    found = metrics.figures(drawn(ties=True))
    assert set(found) == {*NAMES, *KEYS}
    assert all(isinstance(found[name], float) for name in NAMES)
    json.dumps(found, allow_nan=False)


def test_half_is_not_above_the_threshold():
    found = metrics.figures(rows([1, 0], [0.5, 0.5]))
    assert found["confusion_matrix"] == [[0, 1], [0, 1]]


def test_ece_of_a_constant_probability_is_its_distance_from_the_share():
    table = rows([1] * 6 + [0] * 4, [0.9] * 10)
    assert metrics.figures(table)["ece"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("label", "missing", "defined"),
    [(1, "HEM", "sensitivity"), (0, "ALL", "specificity")],
)
def test_one_class_alone_leaves_figures_undefined(label, missing, defined):
    found = metrics.figures(rows([label] * 3, [0.2, 0.6, 0.9]))
    known = {"accuracy", "weighted_f1", "brier", "ece", defined}
    assert {name for name in NAMES if found[name] is not None} == known
    assert set(found["undefined"]) == set(NAMES) - known
    assert set(found["undefined"].values()) == {f"no image is {missing}"}
    json.dumps(found, allow_nan=False)


def test_no_rows_leave_all_figures_undefined():
    found = metrics.figures(drawn().take(np.array([], dtype=np.int64)))
    assert all(found[name] is None for name in NAMES)
    assert found["undefined"]["accuracy"] == "there are no images"
    assert found["confusion_matrix"] == [[0, 0], [0, 0]]


def test_a_constant_classifier_has_no_ppv_and_no_slope():
    found = metrics.figures(rows([1, 1, 0, 0], [0.2] * 4))
    assert found["ppv"] is None
    assert found["undefined"]["ppv"] == "no image is called ALL"
    assert found["npv"] == pytest.approx(0.5)
    assert found["calibration_slope"] is None
    assert "constant" in found["undefined"]["calibration_slope"]
    assert found["mcc"] == 0.0


def test_mcc_of_a_constant_call_is_nil_whatever_the_weights():
    for seed in (*range(20), 2658):  # the last makes scikit-learn's rounding tell
        rng = np.random.default_rng(seed)
        number = int(rng.integers(3, 400))
        label = rng.integers(0, 2, number)
        label[:2] = [0, 1]
        weight = 1 / rng.integers(1, 40, number)
        found = metrics.measure(
            label, np.full(number, 0.9), weight=weight, names=["mcc"]
        )
        assert found == {"mcc": 0.0}


def test_separated_classes_have_no_slope():
    found = metrics.figures(rows([1, 1, 0, 0], [0.9, 0.8, 0.3, 0.2]))
    assert found["calibration_slope"] is None
    assert found["auroc"] == 1.0
    assert found["calibration_intercept"] is not None


def test_other_calls_and_weights_are_those_of_scikit_learn():
    table = drawn(ties=True, seed=3)
    called = table.probability > 0.3
    weight = np.random.default_rng(1).random(len(table)) + 0.1
    found = metrics.measure(
        table.label, table.probability, called=called, weight=weight
    )
    assert found["accuracy"] == pytest.approx(
        sk.accuracy_score(table.label, called, sample_weight=weight)
    )
    sensitivity = sk.recall_score(table.label, called, sample_weight=weight)
    specificity = sk.recall_score(
        table.label, called, sample_weight=weight, pos_label=0
    )
    assert found["sensitivity"] == pytest.approx(sensitivity)
    assert found["ppv"] == pytest.approx(sensitivity / (sensitivity + 1 - specificity))


def test_log_loss_holds_saturated_probabilities_finite():
    found = metrics.measure(
        np.array([1, 0, 1]), np.array([0.0, 0.5, 1.0]), names=["log_loss"]
    )
    # 24 bits of a float32 that is wholly wrong, one that is not at all.
    expected = (24 * np.log(2) + np.log(2) + 2.0**-24) / 3
    assert found["log_loss"] == pytest.approx(expected, rel=1e-9)


def test_figures_are_of_the_rows_alone():
    table = drawn()
    other = dataclasses.replace(table, probability=1 - table.probability)
    one, two = metrics.figures(table), metrics.figures(other)
    assert one["auroc"] == pytest.approx(1 - two["auroc"])
    assert isinstance(Undefined("why").reason, str)
