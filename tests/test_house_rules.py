"""The rules of the house, read from the source: who may import whom, and what."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "allcls_jax"

# The flow: a module imports from its own stage and from stages to its left.
STAGES = ("data", "models", "training", "evaluation", "experiments", "serving")

# Top-level package → the only modules that may import it.
KEEPERS = {
    "flax": ("models/vgg.py", "training/state.py"),
    "tensorflow_datasets": ("data/packing.py",),
    "grain": ("data/pipeline.py",),
    "orbax": ("training/checkpoint.py",),
    "tensorboardX": ("training/writers.py",),
    "matplotlib": ("evaluation/plots.py",),
    "rich": ("terminal.py",),
    "PIL": ("data/transforms.py", "data/decode.py"),
    "absl": ("main.py",),
    "ml_collections": ("main.py",),
    "keras": ("models/convert.py",),
    "tensorflow": (),
    "pickle": (),
}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module imported in a file, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_sources_are_found():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_flow_and_the_keepers(path):
    module = path.relative_to(PACKAGE)
    stage = module.parts[0] if len(module.parts) > 1 else None
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "allcls_jax" and parts[1:2] and parts[1] in STAGES:
            if module.name == "main.py":
                continue
            assert stage is not None, f"{module} imports {name}"
            assert STAGES.index(parts[1]) <= STAGES.index(stage), (
                f"{module} imports {name}"
            )
        allowed = KEEPERS.get(parts[0])
        if allowed is not None:
            assert module.as_posix() in allowed, f"{module} imports {name}"
        assert parts[0] not in ("tools", "tests", "configs"), f"{module}: {name}"


def test_only_paths_reads_environment_variables():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path != PACKAGE / "paths.py":
            assert not re.search(r"getenv|os\.environ(?!\[.+\] = )", text), path


def test_flags_are_read_in_entry_points_only():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if "argparse" in text or "sys.argv" in text:
            assert "def main(argv" in text or path.name == "main.py", path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_configurations_import_the_tree_of_fields_only(path):
    assert {name.rpartition(".")[0] for name in imports(path)} == {"allcls_jax.config"}


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")))
def test_tools_are_calls_of_the_package(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert len(tree.body) <= 3, "docstring, import, call"


def test_no_field_of_the_configuration_is_left_unread():
    from allcls_jax.config_fields import field_names

    text = "".join(
        path.read_text(encoding="utf-8")
        for path in SOURCES
        if path.name not in ("config.py", "config_fields.py")
    )
    for name in field_names():
        last = name.rpartition(".")[2]
        assert re.search(rf"\.{last}\b", text), f"{name} is read nowhere"


def test_modules_stay_short():
    for path in SOURCES:
        count = len(path.read_text(encoding="utf-8").splitlines())
        assert count <= 400, f"{path.name} has {count} lines"
