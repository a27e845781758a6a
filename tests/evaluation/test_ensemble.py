"""What seeds predict together: means and spreads over the right rows."""

import csv
import dataclasses
import io

import numpy as np
import pytest

from allcls_jax.evaluation import ensemble
from allcls_jax.evaluation.predictions import Predictions, concatenate

IMAGES, FOLDS, SEEDS = 12, 3, 4


def run(
    repeat: int, fold: int, seed: int, *, validated: tuple[int, ...]
) -> Predictions:
    """Tests every third image, beginning with that of the fold's number."""
    tested = [i for i in range(IMAGES) if i % FOLDS == fold]
    rows = [*tested, *validated]
    n = len(rows)
    rng = np.random.default_rng([repeat, fold, seed])
    return Predictions(
        image_id=np.array([f"i{row}" for row in rows]),
        patient=np.array([f"p{row}" for row in rows]),
        group=np.array([f"p{row}" for row in rows]),
        label=np.array([row % 2 for row in rows]),
        probability=rng.uniform(size=n),
        part=np.full(n, "train"),
        fold=np.full(n, -1),
        split=np.array(["test"] * len(tested) + ["validation"] * len(validated)),
        area=np.full(n, 7),
        repeat=np.full(n, repeat),
        test_fold=np.full(n, fold),
        seed=np.full(n, seed),
    )


def table(seeds: int = SEEDS, repeats: int = 2) -> Predictions:
    """Of each fold all seeds validate one image, and all but the first another."""
    runs = []
    for repeat in range(repeats):
        for fold in range(FOLDS):
            for seed in range(seeds):
                other = (fold + 1) % FOLDS
                validated = (other,) if seed == 0 else (other, other + FOLDS)
                runs.append(run(repeat, fold, seed, validated=validated))
    return concatenate(runs)


def test_each_image_has_the_mean_and_spread_of_its_seeds():
    rows = table()
    found = ensemble.of_seeds(rows)
    assert found is not None
    assert found.members == SEEDS
    tested = found.mean.of("test")
    assert len(tested) == 2 * IMAGES
    for i in range(len(found.mean)):
        same = np.flatnonzero(
            (rows.image_id == found.mean.image_id[i])
            & (rows.repeat == found.mean.repeat[i])
            & (rows.test_fold == found.mean.test_fold[i])
            & (rows.split == found.mean.split[i])
        )
        assert len(same) == SEEDS
        values = rows.probability[same]
        assert found.mean.probability[i] == pytest.approx(values.mean())
        assert found.spread[i] == pytest.approx(values.std(ddof=1))
        assert found.mean.label[i] == rows.label[same[0]]


def test_what_some_seeds_have_alone_is_left_out():
    found = ensemble.of_seeds(table())
    assert found is not None
    validated = found.mean.of("validation")
    assert len(validated) == 2 * FOLDS, "one of each fold and repeat"


def test_one_seed_is_no_ensemble():
    assert ensemble.of_seeds(table(seeds=1)) is None


def test_seeds_that_agree_do_not_spread():
    rows = table()
    same = dataclasses.replace(rows, probability=np.where(rows.label == 1, 0.75, 0.25))
    found = ensemble.of_seeds(same)
    assert found is not None
    assert np.array_equal(found.spread, np.zeros(len(found.spread)))
    expected = np.where(found.mean.label == 1, 0.75, 0.25)
    assert np.array_equal(found.mean.probability, expected)


def test_the_table_has_spread_and_members_beside_the_predictions():
    found = ensemble.of_seeds(table())
    assert found is not None
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(rows) == len(found.mean)
    for row, mean, spread in zip(
        rows, found.mean.probability, found.spread, strict=True
    ):
        assert float(row["probability"]) == mean
        assert float(row["spread"]) == spread
        assert row["members"] == str(SEEDS)


def test_all_runs_on_the_same_images_are_an_ensemble():
    """Folds, seeds and repeats alike; validation images are no part of it."""
    one = run(0, 0, 0, validated=(1,))
    names = [(repeat, fold, 0) for repeat in range(2) for fold in range(FOLDS)]
    parts = [
        dataclasses.replace(
            one,
            probability=np.random.default_rng(i).uniform(size=len(one)),
            repeat=np.full(len(one), repeat),
            test_fold=np.full(len(one), fold),
            seed=np.full(len(one), seed),
        )
        for i, (repeat, fold, seed) in enumerate(names)
    ]
    found = ensemble.of_runs(concatenate(parts))
    assert found is not None
    assert found.members == 2 * FOLDS
    assert np.array_equal(np.unique(found.mean.split), ["test"])
    values = np.array([part.of("test").probability for part in parts])
    order = np.argsort(one.of("test").image_id)
    np.testing.assert_allclose(found.mean.probability, values.mean(0)[order])
    np.testing.assert_allclose(found.spread, values.std(0, ddof=1)[order])
    assert ensemble.of_runs(one) is None
