import dataclasses
import json

import numpy as np
import pytest

from allcls_jax.errors import InputError
from allcls_jax.evaluation import metrics
from allcls_jax.evaluation.comparison import compare
from allcls_jax.evaluation.metrics import NAMES
from allcls_jax.evaluation.predictions import Predictions
from tests.evaluation.tables import drawn, rows


def better(table: Predictions, shift: float = 0.4) -> Predictions:
    """The same cells with all logits moved towards the truth."""
    logits = np.log(table.probability / (1 - table.probability))
    moved = logits + shift * (2 * table.label - 1)
    return dataclasses.replace(table, probability=1 / (1 + np.exp(-moved)))


def test_a_difference_is_that_of_the_figures():
    one, other = drawn(), better(drawn())
    found = compare(one, other, num_resamples=300)
    first, second = (metrics.figures(x.of("test")) for x in (one, other))
    assert tuple(found["figures"]) == NAMES
    assert found["images"] == first["num_images"]
    assert found["patients"] == first["num_patients"] == 20
    assert found["warnings"] == []
    for name, entry in found["figures"].items():
        assert entry["one"] == pytest.approx(first[name]), name
        assert entry["other"] == pytest.approx(second[name]), name
        assert entry["difference"] == pytest.approx(first[name] - second[name]), name
        assert entry["low"] < entry["difference"] < entry["high"], name
    auroc = found["figures"]["auroc"]
    assert auroc["difference"] < 0
    assert auroc["share_below_zero"] > 0.95
    assert found["figures"]["brier"]["share_below_zero"] < 0.05
    json.dumps(found, allow_nan=False)


def test_the_other_way_round_is_the_same_with_the_other_sign():
    one, other = drawn(), better(drawn())
    there = compare(one, other, num_resamples=200)["figures"]
    back = compare(other, one, num_resamples=200)["figures"]
    for name in NAMES:
        assert there[name]["low"] == pytest.approx(-back[name]["high"])
        assert there[name]["share_below_zero"] == pytest.approx(
            1 - back[name]["share_below_zero"], abs=0.02
        )


def test_pairing_takes_out_what_is_hard_about_a_patient():
    """Moved a little alike, both tables rise and fall together."""
    one = drawn(20, 20, effect=2.0)
    other = better(one, 0.1)
    paired = compare(one, other, num_resamples=300)["figures"]["brier"]
    # The same cells once more, their order among groups broken: nothing in common.
    alone = [
        compare(x, better(drawn(20, 20, effect=2.0, seed=0), 5), num_resamples=300)[
            "figures"
        ]["brier"]
        for x in (one, other)
    ]
    width = paired["high"] - paired["low"]
    assert width < 0.3 * min(entry["high"] - entry["low"] for entry in alone)


def test_a_table_compared_with_itself_has_no_difference():
    found = compare(drawn(), drawn(), num_resamples=200)["figures"]
    for entry in found.values():
        assert entry["difference"] == 0
        assert entry["share_below_zero"] == 0
        assert entry["low"] is None
        assert "in every resample" in entry["reason"]


def test_images_of_one_table_alone_are_left_out_and_counted():
    one = drawn(folds=2)
    other = better(one)
    test = np.flatnonzero(other.split == "test")
    cut = other.take(np.setdiff1d(np.arange(len(other)), test[:7]))
    found = compare(one, cut, num_resamples=200)
    assert found["left_out"] == {"one": 7, "other": 0}
    assert "7 images of the one and 0 of the other" in found["warnings"][0]
    kept = one.take(test[7:])
    assert found["images"] == len(kept)
    expected = metrics.figures(kept)["auroc"]
    assert found["figures"]["auroc"]["one"] == pytest.approx(expected)


def test_runs_with_other_folds_and_seeds_are_compared_by_image():
    one, other = drawn(folds=2, passes=2), drawn(folds=1, passes=1)
    found = compare(one, other, num_resamples=200)
    passes = [metrics.figures(x)["auroc"] for _, x in one.of("test").passes()]
    assert found["figures"]["auroc"]["one"] == pytest.approx(np.mean(passes))
    assert found["left_out"] == {"one": 0, "other": 0}


def test_groups_of_either_table_are_drawn_as_one():
    one = drawn(6, 4)
    patients = one.patient.astype("U8")
    joined = np.where(np.isin(patients, ["p0", "p1"]), "joined", patients)
    other = dataclasses.replace(better(one), group=joined)
    found = compare(one, other, num_resamples=300)
    same = compare(dataclasses.replace(one, group=joined), other, num_resamples=300)
    # Not those of the patients alone.
    alone = compare(one, better(one), num_resamples=300)
    entry = found["figures"]["accuracy"]
    assert entry["difference"] == alone["figures"]["accuracy"]["difference"]
    assert entry["low"] == same["figures"]["accuracy"]["low"]
    assert entry["low"] != alone["figures"]["accuracy"]["low"]


def test_one_class_leaves_figures_undefined():
    one = rows([1, 1, 1], [0.9, 0.2, 0.7])
    found = compare(one, better(one), names=("auroc", "accuracy"), num_resamples=100)
    auroc, accuracy = found["figures"].values()
    assert auroc == {
        "one": None,
        "other": None,
        "difference": None,
        "low": None,
        "high": None,
        "reason": "no image is HEM",
        "share_below_zero": None,
    }
    assert accuracy["difference"] is not None
    assert accuracy["share_below_zero"] is None
    json.dumps(found, allow_nan=False)


def test_tables_of_other_cells_are_refused():
    one = rows([1, 0], [0.9, 0.2])
    with pytest.raises(InputError, match="no image in common"):
        compare(one, rows([1, 0], [0.9, 0.2], prefix="x"))
    with pytest.raises(InputError, match="image test-1: label is 0 in one and 1"):
        compare(one, rows([1, 1], [0.9, 0.2]))
    with pytest.raises(InputError, match="image test-0: patient is test-0 in one"):
        compare(one, rows([1, 0], [0.9, 0.2], patient=["p", "test-1"]))
    broken = dataclasses.replace(one, probability=np.array([0.5, np.nan]))
    with pytest.raises(InputError, match="probability = nan"):
        compare(one, broken)
    with pytest.raises(InputError, match="num_resamples"):
        compare(one, one, num_resamples=1)
