"""What all tests share: real data where it is, and a cache of its own for each."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from absl import flags

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ.setdefault("KERAS_BACKEND", "jax")

# grain's worker processes ask for parsed flags, which the entry point gives them.
flags.FLAGS.mark_as_parsed()


# Where JAX keeps what it has compiled: many tests compile the same small programs, and
# all processes of a session share them.
_COMPILED = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config: pytest.Config) -> None:
    """Gives the session and the processes it starts a folder of compiled programs."""
    if not hasattr(config, "workerinput"):
        os.environ[_COMPILED] = tempfile.mkdtemp(prefix="allcls-compiled-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes it."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[_COMPILED], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with what takes longest, so that no process is left with it at the end."""
    longest = {"cnmc_dir", "ladders", "whole_uninterrupted"}
    items.sort(key=lambda item: not longest & set(getattr(item, "fixturenames", ())))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's caches."""
    monkeypatch.setenv("ALLCLS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


@pytest.fixture(scope="session")
def cnmc_dir() -> Path:
    """The real training cells of C-NMC 2019."""
    return _from_environment("ALLCLS_CNMC_DIR", "the cells of C-NMC 2019")


@pytest.fixture(scope="session")
def vgg16_weights() -> Path:
    """Keras' file of VGG16's ImageNet weights without top."""
    return _from_environment("ALLCLS_VGG16_WEIGHTS", "Keras' VGG16 weights")


def _from_environment(name: str, what: str) -> Path:
    path = os.environ.get(name)
    if not path:
        pytest.skip(f"{name} is not set: it names {what}")
    return Path(path)


_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A Chromium of the distribution; playwright brings none.

    Of a module alone: while it is open, this thread has a running event loop.
    """
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on PATH: install one of {', '.join(_BROWSERS)}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield opened
        opened.close()
