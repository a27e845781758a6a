import dataclasses

import numpy as np
import pytest

from allcls_jax.data.splits import Split
from allcls_jax.evaluation import breakdown, metrics, views
from allcls_jax.evaluation.predictions import Predictions, concatenate
from tests.evaluation.tables import drawn, rows


def given_of(table: Predictions) -> views.Given:
    return views.given(
        table, prevalence=0.5, num_resamples=200, seed=0, confidence=0.95
    )


def test_folds_and_passes_have_the_figures_of_their_rows():
    table = drawn(folds=2, passes=3)
    test = table.of(Split.TEST)
    found = breakdown.spreads(test, prevalence=0.5)
    runs = {run: metrics.figures(part) for run, part in test.runs()}
    assert [(row["repeat"], row["test_fold"]) for row in found["by_fold"]] == [
        (0, 0),
        (0, 1),
    ]
    for row in found["by_fold"]:
        mine = [
            figures
            for run, figures in runs.items()
            if run.test_fold == row["test_fold"]
        ]
        assert row["images"] == mine[0]["num_images"]
        assert row["patients"] == mine[0]["num_patients"]
        for name, entry in row["figures"].items():
            values = [figures[name] for figures in mine]
            assert entry["values"] == values
            assert entry["mean"] == pytest.approx(np.mean(values))
            assert entry["sd"] == pytest.approx(np.std(values, ddof=1))
            assert (entry["min"], entry["max"]) == (min(values), max(values))
    passes = [metrics.figures(part) for _, part in test.passes()]
    assert [row["seed"] for row in found["by_pass"]] == [0, 1, 2]
    for row, expected in zip(found["by_pass"], passes, strict=True):
        assert row["figures"] == {name: expected[name] for name in metrics.NAMES}
        assert row["confusion_matrix"] == expected["confusion_matrix"]
    assert found["confusion_matrix"] == passes[0]["confusion_matrix"]
    assert found["spread"]["auroc"]["mean"] == pytest.approx(
        np.mean([figures["auroc"] for figures in passes])
    )


def test_a_single_value_has_no_standard_deviation():
    found = breakdown.spreads(drawn().of(Split.TEST), prevalence=0.5)
    assert found["spread"]["auroc"]["sd"] is None
    assert found["by_fold"][0]["figures"]["auroc"]["sd"] is None
    assert found["spread"]["auroc"]["min"] == found["spread"]["auroc"]["max"]


def test_a_figure_that_one_fold_lacks_has_no_mean():
    test = concatenate(
        [
            rows([1, 0, 0], [0.9, 0.2, 0.6], prefix="a"),
            rows([1, 1], [0.9, 0.2], prefix="b", test_fold=1),
        ]
    )
    found = breakdown.spreads(test, prevalence=0.5)["by_fold"]
    assert found[0]["figures"]["auroc"]["mean"] == 1.0
    assert found[1]["figures"]["auroc"] == {
        "mean": None,
        "sd": None,
        "min": None,
        "max": None,
        "values": [None],
    }


def test_a_patient_is_told_by_all_its_images():
    test = concatenate(
        [
            rows([1, 1, 0, 0, 1], [0.9, 0.4, 0.2, 0.6, 0.8], patient=list("bbaac")),
            rows(
                [1, 1, 0, 0, 0],
                [0.7, 0.8, 0.1, 0.3, 0.1],
                patient=list("bbaac"),
                test_fold=1,
                seed=1,
            ).take([0, 1, 2, 3]),
        ]
    )
    first, second, third = breakdown.patients(test)
    assert first == {
        "patient": "a",
        "group": "a",
        "label": 0,
        "images": 2,
        "mean_probability": pytest.approx((0.2 + 0.6 + 0.1 + 0.3) / 4),
        "accuracy": 0.75,
        "share_called_all": 0.25,
        "test_folds": [0, 1],
    }
    assert (second["patient"], second["label"], second["images"]) == ("b", 1, 2)
    assert second["share_called_all"] == 0.75
    assert (third["patient"], third["images"], third["test_folds"]) == ("c", 1, [0])


def test_a_patient_of_both_classes_is_marked():
    (found,) = breakdown.patients(rows([1, 0], [0.9, 0.9], patient=["a", "a"]))
    assert found["label"] == breakdown.BOTH == -1
    assert found["accuracy"] == 0.5


def test_the_worst_mistakes_come_first_and_only_mistakes():
    test = concatenate(
        [
            rows([1, 0, 1, 0, 1], [0.4, 0.9, 0.1, 0.2, 0.5]),
            rows([1, 0, 1, 0, 1], [0.8, 0.7, 0.3, 0.4, 0.5], seed=1),
        ]
    )
    found = breakdown.mistakes(test)
    # The first is right in the mean; a half is called HEM.
    assert [row["image_id"] for row in found] == ["test-1", "test-2", "test-4"]
    assert [row["probability"] for row in found] == pytest.approx([0.8, 0.2, 0.5])
    assert found[0] == {
        "image_id": "test-1",
        "patient": "test-1",
        "group": "test-1",
        "label": 0,
        "probability": pytest.approx(0.8),
        "area": 1010,
        "test_fold": 0,
    }


def test_only_so_many_mistakes_are_told():
    assert len(breakdown.mistakes(rows([1] * 40, [0.1] * 40))) == 24


def test_subgroups_are_thirds_of_the_images_and_of_the_patients():
    table = drawn(folds=2, passes=2)
    test = given_of(table).test
    found = breakdown.subgroups(given_of(table))
    kinds = [row["kind"] for row in found]
    # The official folds are the test folds here: told once.
    expected = ["cell area"] * 3 + ["test fold"] * 2 + ["patient size"] * 3
    assert kinds == expected
    whole = len(np.unique(test.image_id))
    patients = len(np.unique(test.patient))
    for kind in set(kinds):
        mine = [row for row in found if row["kind"] == kind]
        assert sum(row["images"] for row in mine) == whole
        if kind == "cell area":
            assert all(abs(row["images"] - whole / 3) <= 1 for row in mine)
        else:
            assert sum(row["patients"] for row in mine) == patients


def test_a_subgroup_has_the_figures_of_its_rows():
    table = drawn(16, 12, folds=2, passes=2)
    given = given_of(table)
    found = {(row["kind"], row["name"]): row for row in breakdown.subgroups(given)}
    fold = found["test fold", "fold 1"]
    parts = [part.take(part.test_fold == 1) for part in given.passes]
    figures = [metrics.figures(part) for part in parts]
    assert fold["images"] == len(parts[0])
    for name in breakdown.SUBGROUP_NAMES:
        assert fold["figures"][name]["value"] == pytest.approx(
            np.mean([figure[name] for figure in figures])
        )
        assert fold["figures"][name]["low"] < fold["figures"][name]["value"]

    low = np.quantile(np.unique(given.test.area), 1 / 3, method="inverted_cdf")
    name = f"smallest third (up to {int(low):,} px)"
    parts = [part.take(part.area <= low) for part in given.passes]
    assert found["cell area", name]["figures"]["accuracy"]["value"] == pytest.approx(
        np.mean([metrics.figures(part)["accuracy"] for part in parts])
    )


def test_official_folds_are_told_where_the_test_folds_are_others():
    table = drawn(folds=2)
    table = dataclasses.replace(table, fold=np.arange(len(table)) % 3)
    names = [
        row["name"]
        for row in breakdown.subgroups(given_of(table))
        if row["kind"] == "official fold"
    ]
    assert names == ["fold 0", "fold 1", "fold 2"]


def test_drawings_of_folds_are_told_apart():
    one = drawn(folds=2)
    table = concatenate([one, dataclasses.replace(one, repeat=one.repeat + 1)])
    names = [
        row["name"]
        for row in breakdown.subgroups(given_of(table))
        if row["kind"] == "test fold"
    ]
    assert names == [
        "fold 0, repeat 0",
        "fold 1, repeat 0",
        "fold 0, repeat 1",
        "fold 1, repeat 1",
    ]


def test_what_does_not_differ_makes_no_subgroups():
    table = rows([1, 0, 1, 0], [0.9, 0.2, 0.6, 0.7])
    table = dataclasses.replace(table, area=np.full(4, 7))
    assert breakdown.subgroups(given_of(table)) == []
