"""The page in a headless browser: the fixtures of its tests."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.serving.model import Model
from allcls_jax.serving.web.app import create_app
from allcls_jax.serving.web.limits import Limits
from tests.serving.web_client import running


@pytest.fixture(scope="module")
def url(tiny_model: Model) -> Iterator[str]:
    limits = Limits(max_upload=2_000_000, max_files=20)
    with running(create_app(tiny_model, limits=limits)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cells, a text called .bmp, a photograph, a large file, and two zips."""
    folder = tmp_path_factory.mktemp("pictures")
    config = SyntheticConfig(num_images=6, num_patients=6)
    cells = [transforms.encode_png(synthetic.draw(config, at)) for at in range(6)]
    for at, data in enumerate(cells[:4]):
        (folder / f"cell_{at + 1}.png").write_bytes(data)
    (folder / "words.bmp").write_text("these are words")
    (folder / "large.bmp").write_bytes(bytes(3_000_000))
    grey = np.full((300, 300, 3), 180, np.uint8)
    (folder / "<b>photo<img src=x>.png").write_bytes(transforms.encode_png(grey))
    with zipfile.ZipFile(folder / "two.zip", "w") as archive:
        archive.writestr("slide/cell_5.png", cells[4])
        archive.writestr("slide/cell_6.png", cells[5])
        archive.writestr("readme.txt", "words")
    with zipfile.ZipFile(folder / "many.zip", "w") as archive:
        for at in range(21):
            archive.writestr(f"{at}.png", b"-")
    return folder


@pytest.fixture
def opened(
    browser: Browser, url: str, request: pytest.FixtureRequest
) -> Iterator[tuple[Page, list[str]]]:
    """The page, and what its console said or it asked of others."""
    width, scheme, *height = getattr(request, "param", (1280, "light"))
    context = browser.new_context(
        viewport={"width": width, "height": height[0] if height else 800},
        color_scheme=scheme,
        reduced_motion="reduce",
        accept_downloads=True,
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    said: list[str] = []

    def watch(route: Route) -> None:
        if route.request.url.startswith((url, "blob:")):
            route.continue_()
        else:
            said.append(f"asked {route.request.url[:80]}")
            route.abort()

    page.route("**/*", watch)
    # Listening from the beginning, so that no dialog opens before playwright looks.
    page.on("filechooser", lambda chooser: None)
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.goto(url)
    page.wait_for_selector("#facts code")
    yield page, said
    context.close()
