"""The notebook of the tour runs from its first cell to its last, without a network."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "tour.ipynb"

# In a process of its own, for nbclient leaves sockets open. The kernel's own are in the
# current folder: no port.
EXECUTE = """
import sys, nbclient, nbformat
from jupyter_client.manager import AsyncKernelManager
notebook = nbformat.read(sys.argv[1], 4)
kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip="kernel")
nbclient.NotebookClient(notebook, km=kernel, timeout=300).execute()
nbformat.write(notebook, "executed.ipynb")
"""


def test_the_tour_runs_and_shows_what_it_showed(tmp_path: Path):
    # The kernel finds the package where pytest does, also where it is not installed.
    environment = {**os.environ, "PYTHONPATH": str(NOTEBOOK.parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown = _kinds(NOTEBOOK)
    outputs = itertools.chain.from_iterable(shown)
    assert sum("image/jpeg" in kinds for kinds in outputs) == 3
    assert _kinds(tmp_path / "executed.ipynb") == shown


def _kinds(path: Path) -> list[list[list[str]]]:
    """Returns, for each cell of a notebook, the kinds in which its outputs are there.

    What a cell prints is one output or several, as it comes to be read.
    """
    return [
        [kinds for kinds, _ in itertools.groupby(map(_kinds_of, cell.outputs))]
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code"
    ]


def _kinds_of(output: nbformat.NotebookNode) -> list[str]:
    return sorted(output.get("data", {output["output_type"]: None}))
