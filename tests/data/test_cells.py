"""The table of cells: its file form, and what it takes of memory."""

import tracemalloc
from pathlib import Path

import numpy as np

from allcls_jax.data.cells import CellTable, read_table, table_from_rows, table_writer
from tests.data.tables import digest


def a_table(number: int = 10) -> CellTable:
    return table_from_rows(
        (f'{i}, "of"', "p", i % 3 - 1, "train", i % 4 - 1, digest(str(i)), i)
        for i in range(number)
    )


def test_the_table_survives_its_file_form(tmp_path: Path):
    table, path = a_table(), tmp_path / "cells.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        write = table_writer(file)
        for row in zip(*(c.tolist() for c in table.columns()), strict=True):
            write(row)
    again = read_table(path)
    for one, other in zip(table.columns(), again.columns(), strict=True):
        assert one.dtype.kind == other.dtype.kind
        assert np.array_equal(one, other)
    assert again.fingerprint() == table.fingerprint()
    assert len(table_from_rows([])) == 0


def test_a_table_is_made_without_a_list_of_its_rows():
    number = 20_000
    rows = (
        (f"UID_{i}_1_all", f"H{i % 90}", 1, "train", i % 3, digest(str(i)), i)
        for i in range(number)
    )
    tracemalloc.start()
    table = table_from_rows(rows)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # As tuples of Python values a row takes 500 bytes.
    assert kept / number < 260
    assert peak / number < 450
    assert table.sha256[number - 1] == digest(str(number - 1))


def test_taking_every_row_copies_nothing():
    table = table_from_rows(
        (f"{i}", "p", 1, "train", 0, digest(str(i)), i) for i in range(10)
    )
    assert table.take(np.arange(10)) is table
    assert table.take(np.arange(9)).image_id.tolist() == [str(i) for i in range(9)]
    # A mask is not a list of rows, though [False, True] equals [0, 1].
    two = table.take([3, 4])
    assert two.take(np.array([False, True])).image_id.tolist() == ["4"]
