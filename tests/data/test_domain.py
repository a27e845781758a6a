import json

import numpy as np
import pytest

from allcls_jax.data import domain

RNG = np.random.default_rng(0)


def _cell(colour, side=20):
    """A square of one colour in the middle of a black picture."""
    image = np.zeros((40, 40, 3), np.uint8)
    begin = (40 - side) // 2
    image[begin : begin + side, begin : begin + side] = colour
    return image


COLOURS = RNG.normal((90, 60, 110), (4, 3, 5), (300, 3)).round().astype(np.uint8)
LEARNT = domain.learn(map(_cell, COLOURS), np.arange(1000, 1300))


def test_it_learns_centre_spread_and_sizes():
    np.testing.assert_allclose(LEARNT.colour, COLOURS.mean(axis=0))
    covariance = np.linalg.inv(np.array(LEARNT.precision)) - np.eye(3)
    np.testing.assert_allclose(covariance, np.cov(COLOURS.T, ddof=0), atol=1e-9)
    assert LEARNT.area == pytest.approx((1000.299, 1149.5, 1298.701))
    apart = (COLOURS - COLOURS.mean(axis=0)) @ np.linalg.cholesky(
        np.array(LEARNT.precision)
    )
    assert LEARNT.distance == pytest.approx(
        np.quantile(np.linalg.norm(apart, axis=1), 0.999)
    )


def test_the_training_cells_themselves_are_usual():
    told = [LEARNT.warnings(_cell(c), 1000 + i) for i, c in enumerate(COLOURS)]
    assert sum(map(bool, told)) == 0


@pytest.mark.parametrize(
    ("area", "said"),
    [(790, "smaller"), (810, ""), (1550, ""), (1570, "larger")],
)
def test_a_fifth_beyond_the_usual_sizes_is_told(area, said):
    told = " ".join(LEARNT.warnings(_cell((90, 60, 110)), area))
    assert told.startswith(said)
    assert bool(told) == bool(said)


def test_a_fifth_beyond_the_usual_distance_is_told():
    direction = np.array([0, 0, 1.0])
    reach = np.sqrt(direction @ np.array(LEARNT.precision) @ direction)
    for factor, said in ((1.15, 0), (1.35, 1)):
        colour = LEARNT.colour + direction * factor * LEARNT.distance / reach
        assert len(LEARNT.warnings(_cell(colour), 1100)) == said


def test_what_touches_the_edge_all_round_is_no_segmented_cell():
    assert LEARNT.warnings(_cell((90, 60, 110), side=40), 1100) == (
        "not a segmented cell: the background is not black",
    )


def test_it_comes_back_from_json():
    assert domain.from_json(json.loads(json.dumps(LEARNT.to_json()))) == LEARNT
    with pytest.raises(ValueError, match="3 x 3"):
        domain.from_json(LEARNT.to_json() | {"precision": [[1.0]]})
