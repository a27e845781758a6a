"""Memory is that of the program and a table, not of the images."""

from pathlib import Path

from allcls_jax.experiments.benchmark import memory


def test_packing_and_reading_keep_no_images_in_memory(tmp_path: Path):
    few, many = memory.measure([500, 2500], folder=tmp_path)
    assert (few.images, many.images) == (500, 2500)
    # Their files alone are 25 MB, which a buffer of them all would add; what threads
    # hold at a time differs by some megabytes from process to process.
    assert many.peak_bytes - few.peak_bytes < 18e6
    assert many.peak_bytes < 1.1 * few.peak_bytes
    assert not list(tmp_path.rglob("*array_record*"))
