"""Where a result comes from: command, code, versions, device, time."""

import datetime
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_PACKAGES = (
    "allcls-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "scikit-learn",
)


def provenance() -> dict[str, Any]:
    """Returns a JSON record of this process: what would be needed to run it again."""
    devices = jax.devices()
    return {
        "command": shlex.join(sys.orig_argv),
        "git": _git(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES},
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "host": f"{platform.system()} {platform.machine()}",
        },
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def version(package: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Returns commit and whether files differ from it; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", "-C", str(root), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return result.stdout.strip()

    # A wheel in somebody's environment may lie inside another project's checkout.
    if git("ls-files", "--error-unmatch", "allcls_jax/main.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}
