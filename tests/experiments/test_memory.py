"""Memory is that of the program and a table, not of the images."""

import tracemalloc
from pathlib import Path

import numpy as np

from allcls_jax.data.cells import table_from_rows
from allcls_jax.experiments.benchmark import memory
from tests.data.tables import digest


def test_packing_and_reading_keep_no_images_in_memory(tmp_path: Path):
    few, many = memory.measure([500, 2500], folder=tmp_path)
    assert (few.images, many.images) == (500, 2500)
    # Their files alone are 25 MB, which a buffer of them all would add; what threads
    # hold at a time differs by some megabytes from process to process.
    assert many.peak_bytes - few.peak_bytes < 18e6
    assert many.peak_bytes < 1.1 * few.peak_bytes
    assert not list(tmp_path.rglob("*array_record*"))


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
