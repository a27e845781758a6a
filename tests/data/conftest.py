"""The records of the real cells, without their pictures."""

import hashlib
from pathlib import Path

import pytest

from allcls_jax.data.cells import CellTable, table_from_rows
from allcls_jax.data.readers import open_source


@pytest.fixture(scope="session")
def cnmc_table(cnmc_dir: Path) -> CellTable:
    """The training cells of C-NMC 2019; their areas are not known."""
    _, cells = open_source(None, cnmc_dir)
    return table_from_rows(
        (*cell.record(), hashlib.sha256(cell.source.read()).hexdigest(), 0)
        for cell in cells
        if cell.part == "train"
    )
