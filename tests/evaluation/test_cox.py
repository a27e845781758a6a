import numpy as np
import pytest
from scipy import optimize, special

from allcls_jax.evaluation import cox


def likeliest(label: np.ndarray, logits: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Constant and slope by a general minimiser that takes no Newton step of ours."""

    def loss(parameters: np.ndarray) -> float:
        eta = parameters[0] + parameters[1] * logits
        return float(np.sum(weight * (np.logaddexp(0, eta) - label * eta)))

    return optimize.minimize(
        loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}
    ).x


def of_logits(logits: np.ndarray) -> np.ndarray:
    return special.expit(logits)


def test_a_probability_that_float32_saturates_has_a_finite_logit():
    found = cox.logit(np.array([0.0, 1e-30, 0.5, 1.0]))
    expected = np.log(2.0**-24 / (1 - 2.0**-24))
    np.testing.assert_allclose(found, [expected, expected, 0, -expected], rtol=1e-9)


@pytest.mark.parametrize("number", [40, 3000])
def test_a_slope_and_an_intercept_that_were_put_in_are_found(number):
    """In expectation: every image stands with the share of both labels it has."""
    logits = np.linspace(-4, 5, number)
    share = special.expit(0.7 * logits - 0.4)
    label = np.repeat([1, 0], number)
    weights = np.concatenate([share, 1 - share])[None]
    probability = np.tile(of_logits(logits), 2)
    found = cox.slope(label, probability, weights)
    np.testing.assert_allclose(found, [0.7], rtol=0, atol=1e-9)
    share = special.expit(logits - 0.4)
    weights = np.concatenate([share, 1 - share])[None]
    np.testing.assert_allclose(
        cox.intercept(label, probability, weights), [-0.4], rtol=0, atol=1e-9
    )


def test_every_weighting_is_fitted_by_itself():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=900) * 3
    label = (rng.random(900) < special.expit(0.5 * logits)).astype(np.int64)
    weights = rng.integers(0, 4, size=(5, 900)).astype(np.float64)
    weights[2] = 0
    probability = of_logits(logits)
    for measure in (cox.slope, cox.intercept):
        together = measure(label, probability, weights)
        alone = [measure(label, probability, row[None])[0] for row in weights]
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-11)
        assert np.isnan(together[2])
        assert np.isfinite(np.delete(together, 2)).all()


@pytest.mark.parametrize(
    ("logits", "label"),
    [
        ([-2, -1, 1, 2], [0, 0, 1, 1]),
        ([-2, -1, 1, 2], [1, 1, 0, 0]),
        ([-2, 0, 0, 2], [0, 0, 1, 1]),
        ([-2, 0, 0, 2], [1, 1, 0, 0]),
        ([1, 1, 1, 1], [0, 1, 0, 1]),
        ([-2, -1, 1, 2], [1, 1, 1, 1]),
    ],
)
def test_classes_that_a_cut_separates_have_no_slope(logits, label):
    found = cox.slope(
        np.array(label), of_logits(np.array(logits, dtype=float)), np.ones((1, 4))
    )
    assert np.isnan(found).all()


def test_images_without_weight_do_not_make_classes_overlap():
    label = np.array([0, 1, 0, 1])
    probability = of_logits(np.array([-1.0, -0.5, 0.5, 1.0]))
    weights = np.array([[1.0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1]])
    found = cox.slope(label, probability, weights)
    assert np.isfinite(found[0])
    assert np.isnan(found[1:]).all()


# Two images far out, on the wrong sides, the rest close together: from nil it takes
# Newton's steps long to settle.
SLOW = (
    [-16.0, -0.012, -0.008, 0.001, 0.004, 0.005, 0.011, 0.02, 16.0],
    [1, 1, 0, 0, 1, 1, 0, 1, 0],
    [23.0, 17, 14, 3, 2, 10, 24, 15, 16],
)
# Weights of all sizes: here they overshoot and never settle unless they are shortened.
RUNAWAY = (
    [-1.39621, -7.98703, 0.17934, -2.65904, 0.8274],
    [1, 0, 0, 0, 1],
    [0.01, 10.0, 10.0, 0.01, 0.1],
)


@pytest.mark.parametrize("times", [1, 200])
@pytest.mark.parametrize("case", [SLOW, RUNAWAY])
def test_a_fit_settles_where_plain_steps_do_not(case, times):
    logits, label, weight = (np.repeat(column, times) for column in case)
    found = cox.slope(label, of_logits(logits), weight[None])
    expected = likeliest(label, logits, weight / times)[1]
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_nearly_separated_classes_have_a_steep_slope(seed):
    rng = np.random.default_rng(seed)
    logits = np.concatenate([rng.normal(8, 0.1, 30), rng.normal(-8, 3, 5), [7.9, 8.0]])
    label = np.concatenate([np.ones(30), np.zeros(5), [0, 1]]).astype(np.int64)
    weights = rng.integers(1, 9, size=(1, len(label))).astype(np.float64)
    found = cox.slope(label, of_logits(logits), weights)
    expected = likeliest(label, cox.logit(of_logits(logits)), weights[0])[1]
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_an_intercept_far_away_is_found():
    # Half are ALL, and the probabilities know nothing of it.
    label = np.array([1, 0])
    found = cox.intercept(label, np.array([1.0, 1.0]), np.ones((1, 2)))
    np.testing.assert_allclose(found, -np.log((1 - 2.0**-24) * 2**24), atol=1e-6)
