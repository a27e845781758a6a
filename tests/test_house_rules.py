"""The rules of the house, read from the source: who may import whom, and what."""

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from allcls_jax.config import Config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "allcls_jax"

# The flow: a module imports from its own stage and from stages to its left.
STAGES = ("data", "models", "training", "evaluation", "experiments", "serving")

# Top-level package → the only modules that may import it.
KEEPERS = {
    "flax": ("models/vgg.py", "training/state.py"),
    "tensorflow_datasets": ("data/records.py",),
    "grain": ("data/pipeline.py",),
    "orbax": ("training/checkpoint.py",),
    "tensorboardX": ("training/writers.py",),
    "matplotlib": (
        "evaluation/plots.py",
        "evaluation/plots_benchmark.py",
        "evaluation/plots_curves.py",
        "evaluation/plots_rows.py",
        "evaluation/plots_style.py",
        "serving/explanation/pictures.py",
    ),
    "skimage": ("evaluation/baselines/classical.py", "serving/segmentation/shapes.py"),
    "jinja2": ("evaluation/report/rendering.py",),
    "rich": ("terminal.py",),
    "PIL": (
        "data/transforms.py",
        "data/contact_sheet.py",
        "serving/segmentation/overlay.py",
    ),
    "absl": ("main.py",),
    "ml_collections": ("main.py",),
    "keras": ("models/convert.py",),
    "onnx": ("serving/exports/to_onnx.py",),
    "onnxruntime": ("serving/exports/to_onnx.py",),
    "pyarrow": ("serving/prediction/tables.py",),
    "ray": ("serving/prediction/on_ray.py",),
    "fastapi": ("serving/web/app.py",),
    "starlette": (
        "serving/web/app.py",
        "serving/web/guard.py",
        "serving/web/server.py",
    ),
    "uvicorn": ("serving/web/server.py",),
    "python_multipart": ("serving/web/forms.py",),
    "pydantic": ("serving/web/schema.py",),
    "shtab": ("serving/cli.py",),
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
            if module.name in ("main.py", "__main__.py"):
                continue
            assert stage is not None, f"{module} imports {name}"
            assert STAGES.index(parts[1]) <= STAGES.index(stage), (
                f"{module} imports {name}"
            )
        allowed = KEEPERS.get(parts[0])
        if allowed is not None:
            assert module.as_posix() in allowed, f"{module} imports {name}"
        assert parts[0] not in ("tools", "tests", "configs"), f"{module}: {name}"


def test_every_keeper_is_there():
    for modules in KEEPERS.values():
        for module in modules:
            assert (PACKAGE / module).is_file(), module


def test_only_paths_reads_environment_variables():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path != PACKAGE / "paths.py":
            assert not re.search(r"getenv|os\.environ(?!\[.+\] = )", text), path


def test_flags_are_read_in_entry_points_only():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if "argparse" in text or "sys.argv" in text:
            entry = path.name in ("main.py", "command_line.py")
            assert "def main(argv" in text or entry, path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_configurations_import_fields_and_recipes_only(path):
    allowed = {"allcls_jax.config", "allcls_jax.recipes"}
    assert {name.rpartition(".")[0] for name in imports(path)} <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")))
def test_tools_are_calls_of_the_package(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert len(tree.body) <= 3, "docstring, import, call"


def sections(kind: type = Config) -> dict[str, dict[str, str]]:
    """Class name → field name → class name of the section that it is, else ""."""
    found: dict[str, dict[str, str]] = {kind.__name__: {}}
    for name, hint in typing.get_type_hints(kind).items():
        found[kind.__name__][name] = ""
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found[kind.__name__][name] = hint.__name__
            found |= sections(hint)
    return found


SECTIONS = sections()


def fields_read(node: ast.AST, known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields (section class, field) of each read that the annotations prove.

    Args:
      node: a module, or a part of it.
      known: what is annotated as a section: `config` or `self.config` → class name.
    """
    inner = dict(known)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        for argument in arguments:
            inner[argument.arg] = annotated(argument.annotation)
    elif isinstance(node, ast.ClassDef):
        for line in node.body:
            if isinstance(line, ast.AnnAssign):
                inner[f"self.{ast.unparse(line.target)}"] = annotated(line.annotation)
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        section = section_of(node.value, known)
        if node.attr in SECTIONS.get(section, {}):
            yield section, node.attr
    for child in ast.iter_child_nodes(node):
        yield from fields_read(child, inner)


def annotated(annotation: ast.expr | None) -> str:
    """The section class that an annotation names, else ""."""
    text = ast.unparse(annotation) if annotation else ""
    return text if text in SECTIONS else ""


def section_of(node: ast.expr, known: Mapping[str, str]) -> str:
    """The section class of `config`, `self.config`, `config.data` …, else ""."""
    if name := known.get(ast.unparse(node)):
        return name
    if isinstance(node, ast.Attribute):
        return SECTIONS.get(section_of(node.value, known), {}).get(node.attr, "")
    return ""


def test_a_read_counts_for_the_section_that_is_annotated():
    code = """
def one(config: OptimConfig, image):
    path.name, image.seed, config.name
    def two(config):
        return config.learning_rate
def three(config: Config):
    config.train.batch_size = config.data.synthetic.seed
class Drawn:
    config: SyntheticConfig
    def draw(self):
        return self.config.num_images
"""
    assert set(fields_read(ast.parse(code), {})) == {
        ("OptimConfig", "name"),
        ("Config", "train"),
        ("Config", "data"),
        ("DataConfig", "synthetic"),
        ("SyntheticConfig", "seed"),
        ("SyntheticConfig", "num_images"),
    }


def test_no_field_of_the_configuration_is_left_unread():
    read = {
        found
        for path in SOURCES
        if path.name not in ("config.py", "config_files.py")
        for found in fields_read(ast.parse(path.read_text(encoding="utf-8")), {})
    }
    fields = {(kind, name) for kind, names in SECTIONS.items() for name in names}
    assert sorted(fields - read) == [], "read nowhere"


def test_the_entry_point_is_flags_validation_and_dispatch_only():
    assert len((PACKAGE / "main.py").read_text(encoding="utf-8").splitlines()) < 100


def test_modules_stay_short():
    for path in SOURCES:
        count = len(path.read_text(encoding="utf-8").splitlines())
        assert count <= 400, f"{path.name} has {count} lines"
