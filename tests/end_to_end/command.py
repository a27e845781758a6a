"""Runs the entry point as a user does: in a process of its own, with a tiny network."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# 58 training images in 8 steps an epoch, 6 for validation, 32 for test.
TINY = ("--config", str(ROOT / "configs" / "vgg19.py:smoke"))


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """This process' environment, with a cache in `folder` and nothing else to read."""
    own = {
        "ALLCLS_CACHE_DIR": str(folder / "cache"),
        "KERAS_HOME": str(folder / "keras"),
        "JAX_PLATFORMS": "cpu",
        # Two cores are shared by all tests.
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    return os.environ | own | variables


def arguments(*flags: str) -> list[str]:
    """The command line of the entry point."""
    return [sys.executable, "-m", "allcls_jax.main", *flags]


def run(
    folder: Path, *flags: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs the entry point in `folder` to its end and returns what it said."""
    return python(folder, *arguments(*flags)[1:], **variables)


def python(
    folder: Path, *words: str, text: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python in `folder` to its end, given a text, and returns what it said."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(folder, **variables),
        input=text,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
