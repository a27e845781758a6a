"""Makes the pictures of the README's tour: `python docs/tour_pictures.py`.

Needs the extras `all` and `test`, and a Chromium of the distribution.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from allcls_jax.data import transforms

DOCS = Path(__file__).parent
PORT = 8799


def main(folder: Path) -> None:
    """Runs the tour in a folder, and copies what it shows."""

    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], cwd=folder, check=True)

    allcls = ("-m", "allcls_jax")
    run(*allcls, "train", "--config", "demo", "--workdir", "RUN")
    run(str(DOCS.resolve() / "draw_examples.py"), "examples")
    run(
        *allcls, "explain", "RUN", "examples/cells/HEM", "--out", "maps", "--limit", "6"
    )
    run(*allcls, "segment", "examples/field.png", "--model", "RUN", "--out", "fields")
    shutil.copy(folder / "maps" / "grid.png", DOCS / "tour_explain.png")
    _smaller(folder / "fields" / "field.overlay.png", DOCS / "tour_segment.png")
    augment = ("--config", "vgg19:finetune", "--cells", "4", "--draws", "1")
    run(*allcls, "augment", "examples/cells", *augment, "--out", "augment.png")
    _smaller(folder / "augment.png", DOCS / "tour_augment.png")
    page = subprocess.Popen(
        [sys.executable, *allcls, "serve", "RUN", f"--port={PORT}"], cwd=folder
    )
    try:
        _wait_for(page)
        _photograph(folder / "examples" / "cells")
    finally:
        page.terminate()
        page.wait()


def _smaller(source: Path, to: Path) -> None:
    """Copies a picture with as few bits as its reader can do with."""
    image = transforms.decode(source.read_bytes(), name=str(source))
    to.write_bytes(transforms.encode_png(np.asarray(image) & 0xF8, level=9))


def _wait_for(page: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz").close()
        except urllib.error.URLError:
            assert page.poll() is None
            time.sleep(0.3)
        else:
            return


def _photograph(cells: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 1200, "height": 1275})
        tab.goto(f"http://127.0.0.1:{PORT}/")
        tab.set_input_files("input[type=file]", sorted(cells.rglob("*.png"))[1::4])
        tab.get_by_role("button", name="Download table").wait_for()
        tab.get_by_label("Heat maps").check()
        tab.wait_for_timeout(8000)
        tab.screenshot(path=DOCS / "tour_serve.png")
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
