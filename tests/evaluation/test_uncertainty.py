import numpy as np
import pytest

from allcls_jax.evaluation.uncertainty import (
    band,
    bootstrap,
    interval,
    resamples,
)

# Three units of ALL, two of HEM, two of both, one of them with its HEM image last.
UNITS = np.array(list("aabccdeffgg"))
LABELS = np.array([1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0])


def test_units_are_drawn_within_their_stratum():
    drawn = resamples(UNITS, LABELS, number=500, seed=0)
    counts = drawn.draw(0, 500)
    assert drawn.units.tolist() == list("abcdefg")
    strata = {value: drawn.stratum == value for value in set(drawn.stratum.tolist())}
    assert sorted(mask.sum() for mask in strata.values()) == [2, 2, 3]
    for mask in strata.values():
        assert set(counts[:, mask].sum(1)) == {mask.sum()}
        # Every unit is drawn as often as another.
        np.testing.assert_allclose(counts[:, mask].mean(0), 1, atol=0.15)
    assert drawn.alone() == 0


def test_a_resample_is_the_same_wherever_it_is_drawn():
    drawn = resamples(UNITS, LABELS, number=50, seed=3)
    again = resamples(UNITS, LABELS, number=80, seed=3)
    np.testing.assert_array_equal(
        drawn.draw(0, 50), np.concatenate([again.draw(0, 7), again.draw(7, 50)])
    )
    other = resamples(UNITS, LABELS, number=50, seed=4)
    assert not np.array_equal(drawn.draw(0, 50), other.draw(0, 50))


def test_many_units_are_not_kept_and_drawn_alike():
    names = np.array([f"{i:05}" for i in range(50_000)])
    label = np.arange(50_000) % 2
    drawn = resamples(names, label, number=100, seed=0)
    assert drawn.kept is None
    np.testing.assert_array_equal(drawn.draw(98, 100), drawn.draw(97, 100)[1:])
    assert drawn.draw(0, 1)[0, label == 1].sum() == 25_000


def test_the_spread_of_a_mean_is_that_of_its_units():
    """Thirty groups of ten images that agree: as many witnesses as groups."""
    rng = np.random.default_rng(0)
    value = rng.normal(size=30)
    unit = np.repeat(np.array([f"{i:02}" for i in range(30)]), 10)
    label = np.ones(300, dtype=np.int64)
    drawn = resamples(unit, label, number=4000, seed=0)
    index = drawn.index(unit)
    image = np.repeat(value, 10)
    found = bootstrap(
        drawn, 300, {"a": lambda counts: {"mean": counts[:, index] @ image / 300}}
    )["a"]["mean"]
    assert found.shape == (4000,)
    assert np.std(found) == pytest.approx(np.std(value) / np.sqrt(30), rel=0.05)


def test_measures_see_the_same_resamples_in_order():
    drawn = resamples(UNITS, LABELS, number=333, seed=0)
    found = bootstrap(
        drawn,
        10_000,
        {
            "one": lambda counts: {"all": counts, "first": counts[:, 0]},
            "two": lambda counts: {"sum": counts.sum(1)},
        },
    )
    np.testing.assert_array_equal(found["one"]["all"], drawn.draw(0, 333))
    np.testing.assert_array_equal(found["one"]["first"], drawn.draw(0, 333)[:, 0])
    np.testing.assert_array_equal(found["two"]["sum"], np.full(333, 7))


def test_an_interval_holds_the_middle_of_the_samples():
    samples = np.random.default_rng(0).permutation(np.arange(1001.0))
    found = interval(samples, 0.9)
    assert (found.low, found.high) == pytest.approx((50, 950))
    assert (found.reason, found.left_out) == (None, 0)


def test_undefined_resamples_are_left_out_and_counted():
    samples = np.concatenate([np.arange(101.0), np.full(99, np.nan)])
    found = interval(samples, 0.9)
    assert (found.low, found.high) == pytest.approx((5, 95))
    assert found.left_out == 99


def test_a_figure_undefined_in_most_resamples_has_no_interval():
    samples = np.concatenate([np.arange(99.0), np.full(101, np.nan)])
    found = interval(samples, 0.9)
    assert (found.low, found.high, found.left_out) == (None, None, 101)
    assert "undefined in 101 of 200" in str(found.reason)


def test_an_interval_without_width_is_none():
    found = interval(np.ones(200), 0.95)
    assert (found.low, found.high) == (None, None)
    assert "1.0000 in every resample" in str(found.reason)


def test_a_band_has_ends_at_every_point_that_is_defined():
    samples = np.stack([np.arange(101.0), np.ones(101), np.full(101, np.nan)], axis=1)
    low, high = band(samples, 0.9)
    assert low[:2] == pytest.approx([5, 1])
    assert high[:2] == pytest.approx([95, 1])
    assert low[2] is high[2] is None


@pytest.mark.parametrize(
    ("units", "labels", "expected"),
    [
        ("abcd", [1, 1, 0, 0], {}),
        ("abc", [1, 1, 0], {0: "two groups with images of HEM, and there is 1"}),
        ("ab", [1, 1], {0: "there is none"}),
        ("a", [1], {0: "there is none", 1: "there is 1"}),
        # One of HEM alone, one of both: neither ever changes.
        ("abcdd", [1, 1, 0, 0, 1], {0: "every group with images of HEM"}),
        ("abccdd", [1, 1, 0, 1, 0, 1], {}),
    ],
)
def test_classes_that_do_not_vary_are_told(units, labels, expected):
    unit, label = np.array(list(units)), np.array(labels)
    drawn = resamples(unit, label, number=10, seed=0)
    found = drawn.lacks(drawn.index(unit), label, "group")
    assert found.keys() == expected.keys()
    for value, text in expected.items():
        assert text in found[value]


def test_units_alone_of_their_kind_are_counted():
    drawn = resamples(
        np.array(list("abcdd")), np.array([1, 1, 0, 0, 1]), number=9, seed=0
    )
    assert drawn.alone() == 2
