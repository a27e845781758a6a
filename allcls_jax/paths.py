"""Folders outside the project: the one place that reads environment variables."""

import os
import sys
from pathlib import Path


def default_cache_dir() -> Path:
    """The folder for packed cells and weights when `cache_dir` is not set.

    `ALLCLS_CACHE_DIR` if set, else the platform's cache folder (`XDG_CACHE_HOME` or
    `~/.cache`; `~/Library/Caches` on macOS; `LOCALAPPDATA` on Windows) plus
    `allcls_jax`.
    """
    if explicit := os.environ.get("ALLCLS_CACHE_DIR"):
        return Path(explicit).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        base = Path(local)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "allcls_jax"


def keras_models_dir() -> Path:
    """The folder in which Keras Applications keeps downloaded weights."""
    home = os.environ.get("KERAS_HOME")
    return (Path(home) if home else Path.home() / ".keras") / "models"
