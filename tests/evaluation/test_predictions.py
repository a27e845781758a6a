import dataclasses

import numpy as np
import pytest

from allcls_jax.data.cells import NO_FOLD, CellTable
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation.predictions import (
    HEADER,
    Pass,
    Predictions,
    Run,
    concatenate,
    join,
    read,
)
from tests.evaluation.tables import drawn, rows


def assert_equal(one: Predictions, other: Predictions) -> None:
    for name, first, second in zip(HEADER, one.columns(), other.columns(), strict=True):
        np.testing.assert_array_equal(first, second, err_msg=name)
        assert first.dtype.kind == second.dtype.kind, name


def changed(**columns: list) -> Predictions:
    """Four good rows of two patients, with some columns replaced."""
    table = rows([1, 1, 0, 0], [0.9, 0.4, 0.2, 0.6], patient=["a", "a", "b", "b"])
    arrays = {name: np.array(values) for name, values in columns.items()}
    return dataclasses.replace(table, **arrays)


def test_the_header_is_the_order_of_the_columns():
    assert ",".join(HEADER) == (
        "image_id,patient,group,label,probability,part,fold,split,area,repeat,"
        "test_fold,seed"
    )


def test_a_table_comes_back_from_its_csv_exactly(tmp_path):
    table = drawn(folds=2, passes=2)
    third = np.float32(1 / 3)
    table.probability[:4] = (0, 1, third, np.nextafter(1, 0))
    table.fold[:5] = NO_FOLD
    path = tmp_path / "predictions.csv"
    path.write_text(table.to_csv(), encoding="utf-8")
    assert_equal(read(path), table)
    assert ",," in path.read_text(encoding="utf-8").splitlines()[1], "an empty fold"


def test_a_table_may_have_a_mark_in_front_and_columns_in_any_order(tmp_path):
    table = drawn(4, 4)
    lines = [line.split(",") for line in table.to_csv().splitlines()]
    text = "\n".join(",".join([*reversed(line), "more"]) for line in lines)
    path = tmp_path / "predictions.csv"
    path.write_text(text, encoding="utf-8-sig")
    assert_equal(read(path), table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        (",".join(HEADER) + "\n", "no rows"),
        ("image_id,label\na,1\n", "patient, group, probability"),
        ("{head}\n{row}\n{cut}\n", "1 problem\n.*row 2 does not have as many"),
        ("{head}\n{row},surplus\n", "row 1 does not have as many"),
        ("{head}\n{row}\n{label}\n", "row 2: label = 'ALL' is not a whole number"),
        ("{head}\n{p}\n", "row 1: probability = 'high' is not a number"),
        ("{head}\n{huge}\n", "row 1: seed = '1{30}' is not a whole number"),
        ("{head}\n{nan}\n", r"probability = nan is not within \[0, 1\]"),
        ('{head}\n"{row}\n', "cannot be read|not a"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, message):
    row = "i,a,a,1,0.9,train,,test,10,0,0,0"
    content = text.format(
        head=",".join(HEADER),
        row=row,
        cut="j,a,a,1",
        label=row.replace("i,a,a,1", "j,a,a,ALL"),
        p=row.replace("0.9", "high"),
        huge=row[:-1] + "1" * 30,
        nan=row.replace("0.9", "nan"),
    )
    path = tmp_path / "predictions.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_a_file_of_another_encoding_and_a_missing_one_are_refused(tmp_path):
    path = tmp_path / "predictions.csv"
    with pytest.raises(InputError, match="cannot be read"):
        read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"patient": ["a", "", "b", "b"]}, r"row 2 \(image test-1\): patient = ''"),
        ({"patient": ["a", "a", " ", "b"]}, "patient = ' ' is empty"),
        ({"group": ["a", "a", "b", ""]}, "row 4 .* group = ''"),
        ({"image_id": ["1", "", "3", "4"]}, "image_id = '' is empty"),
        ({"probability": [0.5, 1.5, 0.1, 0.2]}, r"probability = 1.5 is not within"),
        ({"probability": [0.5, 0.5, -1e-9, 0.2]}, "probability = -1e-09"),
        ({"probability": [0.5, 0.5, 0.1, np.nan]}, "row 4 .*probability = nan"),
        ({"probability": [np.inf, 0.5, 0.1, 0.2]}, "probability = inf"),
        ({"label": [1, 1, 0, 2]}, "label = 2 is not"),
        ({"label": [1, 1, 0, -1]}, "label = -1 is not"),
        ({"split": ["test", "test", "test", "train"]}, "split = 'train' is neither"),
        ({"area": [1, 2, 3, -4]}, "area = -4 is negative"),
        ({"image_id": list("iijk")}, "image i stands more than once in repeat 0"),
        (
            {"image_id": list("iijk"), "test_fold": [0, 1, 0, 1]},
            "tested more than once",
        ),
        (
            {"image_id": list("iijk"), "seed": [0, 1, 0, 0], "label": [1, 0, 0, 0]},
            r"image_id i has several values of label: \[0, 1\]",
        ),
        (
            {"image_id": list("iijk"), "seed": [0, 1, 0, 0], "patient": list("abcc")},
            "image_id i has several values of patient",
        ),
        ({"group": ["g", "h", "b", "b"]}, r"patient a has several values of group"),
        ({"split": ["validation"] * 4}, "no row has the split 'test'"),
    ],
)
def test_rows_that_break_a_rule_are_named(columns, message):
    with pytest.raises(InputError, match=message):
        changed(**columns).check()


def test_every_problem_is_told_and_good_rows_are_none():
    changed().check()
    table = changed(probability=[2, 0.5, 3, 0.5], patient=["", "a", "b", "b"])
    with pytest.raises(InputError, match="3 problems"):
        table.check()


def test_an_empty_table_is_refused():
    with pytest.raises(InputError, match="no rows"):
        changed().take(np.array([], dtype=np.int64)).check()


def test_an_image_may_stand_once_in_each_run():
    table = concatenate([changed(), dataclasses.replace(changed(), seed=np.full(4, 1))])
    assert len(table) == 8
    with pytest.raises(InputError, match="stands more than once"):
        concatenate([changed(), changed()])


def test_runs_and_passes_divide_the_rows():
    table = drawn(folds=3, passes=2)
    runs = dict(table.runs())
    assert list(runs) == [Run(0, fold, seed) for fold in range(3) for seed in range(2)]
    assert sum(map(len, runs.values())) == len(table)
    for run, part in runs.items():
        assert set(part.test_fold) == {run.test_fold}
        assert set(part.seed) == {run.seed}
    passes = dict(table.passes())
    assert list(passes) == [Pass(0, 0), Pass(0, 1)]
    tested = [set(part.of(Split.TEST).image_id) for part in passes.values()]
    assert tested[0] == tested[1] == set(table.of(Split.TEST).image_id)


def test_take_and_of_choose_rows():
    table = changed(split=["test", "validation", "test", "validation"])
    assert table.of("validation").image_id.tolist() == ["test-1", "test-3"]
    assert table.take([2, 0]).image_id.tolist() == ["test-2", "test-0"]
    mask = np.array([False, True, True, False])
    assert_equal(table.take(mask), table.take(np.array([1, 2])))


def test_groups_on_both_sides_of_one_run_are_found():
    validation = rows([1, 0], [0.9, 0.1], patient=["b", "c"], split="validation")
    tested = rows([1, 0], [0.9, 0.1], patient=["a", "b"])
    assert concatenate([validation, tested]).shared_groups() == ("b",)
    other = dataclasses.replace(validation, seed=np.full(2, 1))
    assert concatenate([other, tested]).shared_groups() == (), "of another run"
    # Other patients, but of one group.
    joined = dataclasses.replace(validation, group=np.array(["g", "h"]))
    joined = dataclasses.replace(joined, patient=np.array(["x", "y"]))
    tested = dataclasses.replace(tested, group=np.array(["h", "i"]))
    assert concatenate([joined, tested]).shared_groups() == ("h",)


def test_join_takes_the_rows_of_each_split_in_order():
    table = CellTable(
        image_id=np.array(list("ijkl")),
        patient=np.array(list("aabc")),
        label=np.array([1, 1, 0, 1]),
        part=np.full(4, "train"),
        fold=np.array([0, 1, 2, NO_FOLD]),
        sha256=np.array(list("wxyz")),
        area=np.array([5, 6, 7, 8]),
    )
    found = join(
        table,
        np.array(["g", "g", "h", "h"]),
        {Split.TEST: {3: 0.25, 2: 0.5}, Split.VALIDATION: {0: 1.0}},
        repeat=4,
        test_fold=5,
        seed=6,
    )
    assert found.image_id.tolist() == ["k", "l", "i"]
    assert found.probability.tolist() == [0.5, 0.25, 1.0]
    assert found.split.tolist() == ["test", "test", "validation"]
    assert found.group.tolist() == ["h", "h", "g"]
    assert found.area.tolist() == [7, 8, 5]
    assert found.fold.tolist() == [2, -1, 0]
    assert [run for run, _ in found.runs()] == [Run(4, 5, 6)]
    with pytest.raises(InputError, match="probability = nan"):
        join(
            table,
            table.patient,
            {Split.TEST: {0: float("nan")}},
            repeat=0,
            test_fold=0,
            seed=0,
        )


def test_runs_that_test_the_same_images_are_passes_of_their_own():
    """As all folds' networks on other cells do; a part of them is a contradiction."""
    table = rows([1, 0] * 2, [0.9, 0.4, 0.2, 0.6], patient=["a", "b"] * 2)
    twice = dataclasses.replace(
        table,
        image_id=np.array(["i", "j"] * 2),
        test_fold=np.array([0, 0, 1, 1]),
    )
    twice.check()
    found = [part.probability.tolist() for _, part in twice.passes()]
    assert found == [[0.9, 0.4], [0.2, 0.6]]
    with pytest.raises(InputError, match="tested more than once"):
        twice.take([0, 1, 2]).check()
