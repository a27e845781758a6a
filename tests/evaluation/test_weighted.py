"""The bootstrap's figures against scikit-learn's with `sample_weight`."""

from typing import Any

import numpy as np
import pytest
from scipy import optimize, special
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from allcls_jax.evaluation import weighted
from allcls_jax.evaluation.cox import EPSILON
from allcls_jax.evaluation.metrics import NAMES, measure

PREVALENCE = 0.3
ALL_NAMES = (*NAMES, "log_loss")


def images(seed: int, number: int, *, digits: int | None) -> weighted.Images:
    """Images of six units; few digits make ties, and probabilities of 0 and 1."""
    rng = np.random.default_rng(seed)
    label = (rng.random(number) < 0.6).astype(np.int64)
    logits = rng.normal(size=number) * 2 + label
    probability = 1 / (1 + np.exp(-logits))
    if digits is not None:
        probability = probability.round(digits)
    unit = rng.integers(6, size=number)
    called = probability > rng.choice([0.5, 0.3], size=number)
    return weighted.images(label, probability, called, unit)


def repeated(given: weighted.Images, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """Labels and probabilities of images that stand as often as their weight says."""
    times = weight.astype(np.int64)
    return np.repeat(given.label, times), np.repeat(given.probability, times)


def plain_ece(label: np.ndarray, probability: np.ndarray) -> float:
    """Ten bins of the same number, by lists; ties have their mean label."""
    mean = {
        p: np.mean(label[probability == p]) for p in np.unique(probability).tolist()
    }
    # Each image ten times, so that ten bins come out even.
    ordered = sorted(np.repeat(probability, 10).tolist())
    bins = [ordered[i * len(label) : (i + 1) * len(label)] for i in range(10)]
    gaps = [abs(np.mean([mean[p] - p for p in part])) for part in bins]
    return float(np.mean(gaps))


def reference(name: str, given: weighted.Images, weight: np.ndarray) -> float:
    """One figure by scikit-learn, or by plain numpy where it has none."""
    label, p, called = given.label, given.probability, given.called
    kw: dict[str, Any] = {"sample_weight": weight}
    sensitivity = sk.recall_score(label, called, **kw)
    specificity = sk.recall_score(label, called, pos_label=0, **kw)
    rare, common = PREVALENCE, 1 - PREVALENCE
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    logits = np.log(clipped / (1 - clipped))
    match name:
        case "accuracy":
            return sk.accuracy_score(label, called, **kw)
        case "balanced_accuracy":
            return sk.balanced_accuracy_score(label, called, **kw)
        case "weighted_f1":
            return sk.f1_score(label, called, average="weighted", **kw)
        case "auroc":
            return sk.roc_auc_score(label, p, **kw)
        case "average_precision":
            return sk.average_precision_score(label, p, **kw)
        case "mcc":
            return sk.matthews_corrcoef(label, called, **kw)
        case "sensitivity":
            return sensitivity
        case "specificity":
            return specificity
        case "ppv":
            right = sensitivity * rare
            return right / (right + (1 - specificity) * common)
        case "npv":
            right = specificity * common
            return right / (right + (1 - sensitivity) * rare)
        case "brier":
            return sk.brier_score_loss(label, p, **kw)
        case "log_loss":
            return sk.log_loss(label, clipped, **kw)
        case "ece":
            return plain_ece(*repeated(given, weight))
        case "calibration_slope":
            fit = LogisticRegression(C=np.inf, tol=1e-14, solver="newton-cholesky")
            return fit.fit(logits[:, None], label, **kw).coef_.item()
        case "calibration_intercept":
            return optimize.root_scalar(
                lambda a: np.sum(weight * (label - special.expit(logits + a))),
                bracket=(-30, 30),
                xtol=1e-13,
            ).root
    raise AssertionError(name)


CASES = [(0, 60, None), (1, 200, 1), (2, 45, 0), (3, 700, 2), (4, 1500, None)]


@pytest.mark.parametrize(("seed", "number", "digits"), CASES)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_resampled_figures_are_those_of_scikit_learn(name, seed, number, digits):
    given = images(seed, number, digits=digits)
    counts = np.random.default_rng(seed).multinomial(6, [1 / 6] * 6, size=12)
    weights = given.weights(counts.astype(np.float64))
    found = weighted.figures(given, weights, [name], prevalence=PREVALENCE)[name]
    expected = [reference(name, given, weight) for weight in weights]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in ALL_NAMES if name != "ece"])
def test_fractional_weights_are_those_of_scikit_learn(name):
    given = images(5, 300, digits=2)
    weights = np.random.default_rng(5).random((8, 300))
    weights[:, :20] = 0
    found = weighted.figures(given, weights, [name], prevalence=PREVALENCE)[name]
    expected = [reference(name, given, weight) for weight in weights]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_ece_is_the_same_for_weights_and_repeated_images():
    given = images(6, 300, digits=1)
    weights = np.random.default_rng(6).integers(0, 5, size=(8, 300)) / 7
    found = weighted.figures(given, weights, ["ece"], prevalence=0.5)["ece"]
    expected = [plain_ece(*repeated(given, weight * 7 + 1e-6)) for weight in weights]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_the_point_figure_is_that_of_all_images_once(name):
    given = images(7, 400, digits=2)
    found = weighted.figures(given, np.ones((1, 400)), [name], prevalence=PREVALENCE)[
        name
    ]
    point = measure(
        given.label,
        given.probability,
        called=given.called,
        names=[name],
        prevalence=PREVALENCE,
    )[name]
    assert isinstance(point, float)
    np.testing.assert_allclose(found, [point], rtol=0, atol=1e-12)


def test_a_scale_multiplies_the_counts():
    given = images(8, 50, digits=None)
    scale = np.random.default_rng(8).random(50)
    scaled = weighted.images(
        given.label, given.probability, given.called, given.unit, scale
    )
    counts = np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(scaled.weights(counts), counts[:, given.unit] * scale)


def test_figures_without_a_class_are_nan_and_others_are_not():
    given = images(9, 100, digits=1)
    weights = np.stack([given.label == 1, given.label == 0]).astype(np.float64)
    found = weighted.figures(
        given, weights, (*ALL_NAMES, *weighted.CURVES), prevalence=0.5
    )
    for name, values in found.items():
        if name in ("accuracy", "weighted_f1", "brier", "log_loss", "ece"):
            assert np.isfinite(values).all(), name
        elif name == "sensitivity":
            assert np.isfinite(values[0])
            assert np.isnan(values[1])
        elif name == "specificity":
            assert np.isnan(values[0])
            assert np.isfinite(values[1])
        else:
            assert np.isnan(values).all(), name


@pytest.mark.parametrize("digits", [None, 1])
def test_the_curves_are_those_of_scikit_learn(digits):
    given = images(10, 150, digits=digits)
    weights = np.random.default_rng(10).integers(0, 4, size=(6, 150)).astype(float)
    found = weighted.figures(given, weights, weighted.CURVES, prevalence=0.5)
    for row, weight in enumerate(weights):
        false, true, _ = sk.roc_curve(
            given.label,
            given.probability,
            sample_weight=weight,
            drop_intermediate=False,
        )
        for x, y in zip(weighted.FALSE_ALARMS, found["tpr"][row], strict=True):
            # The highest point at or before x, then along the straight line.
            i = np.flatnonzero(false <= x + 1e-12)[-1]
            expected = true[i]
            if i + 1 < len(false) and false[i + 1] > false[i]:
                share = max(x - false[i], 0) / (false[i + 1] - false[i])
                expected += share * (true[i + 1] - true[i])
            assert y == pytest.approx(expected, abs=1e-9)
        precision, recall, _ = sk.precision_recall_curve(
            given.label, given.probability, sample_weight=weight
        )
        for x, y in zip(weighted.RECALLS, found["precision"][row], strict=True):
            # Thresholds ascend: the last that recalls enough.
            i = np.flatnonzero(recall >= x - 1e-12)[-1]
            assert y == pytest.approx(precision[i], abs=1e-9)


def test_the_steps_under_the_precision_recall_curve_are_the_average_precision():
    given = images(11, 4000, digits=None)
    found = weighted.figures(
        given,
        np.ones((1, 4000)),
        ("precision", "average_precision", "tpr", "auroc"),
        prevalence=0.5,
    )
    assert found["precision"].mean() == pytest.approx(
        found["average_precision"].item(), abs=0.01
    )
    area = np.trapezoid(found["tpr"][0], weighted.FALSE_ALARMS)
    assert area == pytest.approx(found["auroc"].item(), abs=0.005)


def test_the_error_at_a_coverage_is_that_of_the_most_confident():
    # Confidence falls; the third and fifth are called wrongly.
    probability = np.array([0.99, 0.02, 0.95, 0.9, 0.8, 0.3, 0.35, 0.6, 0.45, 0.5])
    label = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0])
    given = weighted.images(
        label, np.abs(probability - 0.5), probability > 0.5, np.arange(10)
    )
    found = weighted.errors_at_coverage(given, np.ones((1, 10)))[0]
    expected = [0, 0, 1 / 3, 1 / 4, 2 / 5, 2 / 6, 2 / 7, 2 / 8, 2 / 9, 2 / 10]
    np.testing.assert_allclose(found[1::2], expected, atol=1e-12)
    # Twice the third image, none of the first.
    weights = np.array([[0.0, 1, 2, 1, 1, 1, 1, 1, 1, 1]])
    found = weighted.errors_at_coverage(given, weights)[0]
    np.testing.assert_allclose(found[1::2][:3], [0, 1 / 2, 2 / 3], atol=1e-12)


def test_images_of_one_confidence_share_their_errors():
    given = weighted.images(
        np.array([1, 1, 0, 0]),
        np.full(4, 0.3),
        np.array([True, True, True, True]),
        np.arange(4),
    )
    found = weighted.errors_at_coverage(given, np.ones((1, 4)))
    np.testing.assert_allclose(found, 0.5)
