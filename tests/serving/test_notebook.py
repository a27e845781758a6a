"""The notebook of the tour runs from its first cell to its last, without a network."""

from pathlib import Path

import nbclient
import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "tour.ipynb"


# Of ipykernel's and traitlets' own making; the notebook's are its outputs.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_tour_runs_and_shows_what_it_showed(tmp_path):
    notebook = nbformat.read(NOTEBOOK, 4)
    kinds = _kinds(notebook)
    assert sum("image/jpeg" in kind for kind in kinds) == 2
    # Sockets in a folder of the test: no port, and nothing in the current folder.
    kernel = AsyncKernelManager(
        kernel_name="python3", transport="ipc", ip=str(tmp_path / "k")
    )
    nbclient.NotebookClient(notebook, km=kernel, timeout=300).execute()
    assert _kinds(notebook) == kinds


def _kinds(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Returns the kinds in which each output is there."""
    return [
        sorted(output.get("data", {output["output_type"]: None}))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
