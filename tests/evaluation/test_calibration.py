import numpy as np
import pytest
from scipy import special

from allcls_jax.evaluation import calibration
from tests.evaluation.tables import drawn


def overconfident(number: int = 4000, times: float = 3.0) -> tuple[np.ndarray, ...]:
    """Labels and probabilities whose logits are `times` too large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=number) * 2
    label = (rng.random(number) < special.expit(logits)).astype(np.int64)
    return label, special.expit(times * logits)


def loss(label: np.ndarray, probability: np.ndarray) -> float:
    return float(np.mean(calibration.log_losses(label, probability)))


@pytest.mark.parametrize("times", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_logits_were_multiplied_with(times):
    label, probability = overconfident(times=times)
    found = calibration.temperature(label, probability)
    assert found.reason is None
    assert found.value == pytest.approx(times, rel=0.1)


def test_the_temperature_has_the_least_log_loss():
    label, probability = overconfident()
    best = calibration.temperature(label, probability).value
    assert best is not None
    least = loss(label, calibration.calibrate(probability, best))
    for factor in (0.9, 0.999, 1.001, 1.1):
        other = calibration.calibrate(probability, best * factor)
        assert loss(label, other) > least


def test_a_temperature_beyond_the_range_is_its_end():
    label = np.array([1, 0] * 60 + [1])
    # One wrong of 121, and that by the least: as cold as may be.
    right = np.where(label == 1, 0.6, 0.4)
    right[-1] = 0.499
    assert calibration.temperature(label, right).value == 0.05
    # Sure of itself and right in 61 of them: as hot as may be.
    sure = np.where(label == 1, 0.99, 0.01)
    wrong = np.where(np.arange(121) < 61, sure, 1 - sure)
    assert calibration.temperature(label, wrong).value == 20.0


def test_probabilities_that_float32_saturates_have_a_temperature():
    label, probability = overconfident(times=12)
    probability = probability.astype(np.float32).astype(np.float64)
    probability[:20] = label[:20] == 0
    assert set(probability[:20]) <= {0.0, 1.0}
    found = calibration.temperature(label, probability).value
    assert found is not None
    after = calibration.calibrate(probability, found)
    assert np.all((after > 0) & (after < 1))


@pytest.mark.parametrize(
    ("label", "probability", "reason"),
    [
        ([], [], "no validation images"),
        ([1, 1], [0.9, 0.2], "no validation image is HEM"),
        ([0, 0], [0.9, 0.2], "no validation image is ALL"),
        ([1, 0], [0.9, 0.2], "called wrongly"),
        ([1, 0, 1, 0], [0.2, 0.9, 0.4, 0.6], "no better than by chance"),
        ([1, 0], [0.5, 0.5], "no better than by chance"),
    ],
)
def test_a_temperature_that_does_not_exist_says_why(label, probability, reason):
    found = calibration.temperature(
        np.array(label, dtype=np.int64), np.array(probability, dtype=np.float64)
    )
    assert found.value is None
    assert reason in str(found.reason)


def test_a_temperature_moves_no_image_across_a_half_and_one_does_nothing():
    probability = np.array([0.0, 0.2, 0.5, 0.7, 1.0])
    after = calibration.calibrate(probability, 2.5)
    np.testing.assert_array_equal(np.sign(after - 0.5), np.sign(probability - 0.5))
    np.testing.assert_allclose(
        special.logit(after[1:4]), special.logit(probability[1:4]) / 2.5
    )
    assert calibration.calibrate(probability, 1.0) is probability


def cuts(probability: np.ndarray) -> np.ndarray:
    """A threshold at and between all values: whatever can be told apart."""
    values = np.unique([0, *probability, 1])
    return np.unique([*values, *(values[1:] + values[:-1]) / 2])


def rates(
    label: np.ndarray, probability: np.ndarray, threshold: float
) -> tuple[float, float]:
    called = probability > threshold
    return float(np.mean(called[label == 1])), float(np.mean(~called[label == 0]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
def test_youdens_threshold_has_the_greatest_sum_of_rates(seed, ties):
    table = drawn(4, 3, seed=seed, ties=ties)
    label, probability = table.label, table.probability
    found = calibration.youden(label, probability).value
    assert found is not None
    best = max(sum(rates(label, probability, cut)) for cut in cuts(probability))
    assert sum(rates(label, probability, found)) == pytest.approx(best)


def test_of_equal_thresholds_youdens_is_the_nearest_to_a_half():
    label = np.array([0, 1, 0, 1])
    # J is 0.5 between 0.1 and 0.2, and between 0.6 and 0.8 as well.
    found = calibration.youden(label, np.array([0.1, 0.2, 0.6, 0.8]))
    assert found.value == pytest.approx(0.7)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("least", [0.5, 0.95, 1.0])
def test_the_threshold_at_a_sensitivity_is_the_highest(seed, ties, least):
    table = drawn(4, 3, seed=seed, ties=ties)
    label, probability = table.label, table.probability
    # Else with ties ALL images of probability 0 may be beyond every threshold.
    probability = np.clip(probability, 0.01, 1)
    found = calibration.at_sensitivity(label, probability, least).value
    assert found is not None
    assert rates(label, probability, found)[0] >= least
    good = [c for c in cuts(probability) if rates(label, probability, c)[0] >= least]
    # Midway down to the neighbour: nothing lies between it and the highest one.
    assert not np.any((probability > found) & (probability <= max(good)))


def test_a_threshold_above_which_no_image_can_lie_is_undefined():
    found = calibration.at_sensitivity(
        np.array([1, 1, 0]), np.array([0.0, 0.9, 0.1]), 0.95
    )
    assert found.value is None
    assert "P(ALL) = 0" in str(found.reason)


def test_probabilities_that_differ_by_the_least_bit_are_told_apart():
    low = 0.7
    high = np.nextafter(low, 1)
    found = calibration.youden(np.array([0, 1]), np.array([low, high])).value
    assert found is not None
    assert low <= found < high


@pytest.mark.parametrize("label", [[], [1, 1], [0, 0]])
def test_thresholds_need_both_classes(label):
    probability = np.linspace(0.2, 0.8, len(label))
    given = np.array(label, dtype=np.int64)
    for found in (
        calibration.youden(given, probability),
        calibration.at_sensitivity(given, probability, 0.95),
    ):
        assert found.value is None
        assert "validation image" in str(found.reason)


def test_bins_of_equal_mass_share_equal_probabilities_out():
    shares = calibration.bins(np.array([0.9, 0.1, 0.1, 0.1, 0.9]))
    np.testing.assert_allclose(shares.sum(0), 0.5)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares[1], [1 / 6] * 6 + [0] * 4)
    np.testing.assert_array_equal(shares[1], shares[3])
    np.testing.assert_allclose(shares[0], [0] * 6 + [1 / 4] * 4)


def test_bins_and_calibration_error_agree():
    table = drawn(ties=True)
    shares = calibration.bins(table.probability)
    gap = shares.T @ (table.label - table.probability)
    found = calibration.expected_calibration_error(
        table.label, table.probability, np.ones((1, len(table)))
    )
    assert found.item() == pytest.approx(np.abs(gap).sum() / len(table), abs=1e-12)
