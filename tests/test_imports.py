"""Every module can be imported by itself, and none brings TensorFlow in."""

import pkgutil
import subprocess
import sys

import allcls_jax


def modules() -> list[str]:
    found = pkgutil.walk_packages(allcls_jax.__path__, "allcls_jax.")
    return [module.name for module in found]


def test_every_module_imports_without_tensorflow():
    assert len(modules()) > 20
    # In a fresh interpreter: tests have imported much already.
    code = f"""
import importlib, sys
for name in {modules()!r}:
    importlib.import_module(name)
assert "tensorflow" not in sys.modules
assert "keras" not in sys.modules
assert "torch" not in sys.modules
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
