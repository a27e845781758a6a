"""Patients who are left out: the file, what it is remembered by, and who is left."""

import json
from pathlib import Path

import numpy as np
import pytest

from allcls_jax.data import left_out
from allcls_jax.errors import InputError
from tests.data.tables import make_table


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_the_rest_are_the_rows_of_all_others(tmp_path):
    table = make_table({"1": 3, "2": 2, "12": 4, "H1": 3})
    found = left_out.read(write(tmp_path / "out.json", ["2", 12]))
    rows = np.array([0, 2, 3, 5, 9, 11])
    assert found.patients == ("12", "2")
    assert found.rest(table, rows).tolist() == [0, 2, 9, 11]


def test_without_a_file_nobody_is_left_out():
    table = make_table({"1": 3})
    assert left_out.read(None).setting is None
    assert left_out.read(None).rest(table, np.arange(3)).tolist() == [0, 1, 2]


def test_a_file_may_move_and_be_written_otherwise_but_name_nobody_else(tmp_path):
    first = left_out.read(write(tmp_path / "out.json", ["2", "1", "é"]))
    assert first.setting is not None
    path, _, held = first.setting.partition("@sha256:")
    assert path == str(tmp_path / "out.json")
    other = tmp_path / "other.json"
    other.write_text(left_out.to_json(["é", "1", "2", "1"]), encoding="utf-8")
    again = left_out.read(f"{other}@sha256:{held}")
    assert again == (first.patients, f"{other}@sha256:{held}")
    write(tmp_path / "out.json", ["1"])
    with pytest.raises(InputError, match=r"names other patients.*@?sha256:\w{16}\)"):
        left_out.read(first.setting)


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "JSONDecodeError"), ('{"1": 2}', "dict where a list"), (None, "No such")],
)
def test_a_file_that_is_no_list_is_named_with_the_remedy(tmp_path, content, told):
    if content is not None:
        (tmp_path / "out.json").write_text(content)
    with pytest.raises(InputError, match=rf"{told}.*--config\.data\.without=FILE"):
        left_out.read(str(tmp_path / "out.json"))


def test_everyone_who_is_not_there_is_named(tmp_path):
    found = left_out.read(write(tmp_path / "out.json", ["1", "H9", "3"]))
    with pytest.raises(InputError, match=r"(?s)2 problems.*as 3\b.*as H9\b"):
        found.rest(make_table({"1": 3}), np.arange(3))
