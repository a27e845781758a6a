import importlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from allcls_jax import DISCLAIMER, config_files
from allcls_jax.errors import InputError
from allcls_jax.serving import cli

ROOT = Path(__file__).resolve().parents[2]


def _ended(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Returns exit code, standard output and standard error of a command."""
    code: object = None
    try:
        code = cli.main(words)
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return int(str(code or 0)), said.out, said.err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_help_with_an_example(verb, capsys):
    code, out, err = _ended(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert f"allcls {verb} " in out.partition("xample")[2]
    assert DISCLAIMER in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_mistake_is_one_line_and_code_2(verb, capsys):
    code, out, err = _ended(capsys, verb, "--nonsense=1", "a", "b", "c")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_without_a_verb_all_are_listed(capsys):
    code, out, _ = _ended(capsys)
    assert code == 0
    for verb in cli.VERBS:
        assert f"\n  {verb} " in out
    assert DISCLAIMER in out
    assert _ended(capsys, "predit", "x") == (
        2,
        "",
        "error: predit: no such verb; did you mean predict?\n",
    )


def test_help_needs_no_jax():
    code = (
        "import sys; from allcls_jax.serving import cli; cli.main([]); "
        "assert not {'jax', 'numpy'} & set(sys.modules), 'slow'"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
    )


def test_a_shell_completes_verbs_options_and_fields(tmp_path):
    script = tmp_path / "allcls.bash"
    script.write_text(cli.completion("bash"))
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")

    def completed(*words: str) -> set[str]:
        typed = " ".join(f"'{word}'" for word in words)
        done = subprocess.run(
            [
                bash,
                "-c",
                f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
                "_shtab_allcls; printf '%s\\n' \"${COMPREPLY[@]}\"",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return set(done.stdout.split())

    assert completed("allcls", "pre") == {"predict", "prepare"}
    assert "--verify" in completed("allcls", "convert", "--ver")
    assert completed("allcls", "train", "--config.optim.learn") == {
        "--config.optim.learning_rate"
    }
    assert completed("allcls", "train", "--config", "vgg") == {"vgg16", "vgg19"}
    for shell in cli.SHELLS:
        assert "allcls" in cli.completion(shell)


def test_a_configuration_is_found_by_its_name_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = config_files.read_file("vgg16:smoke")
    assert named == config_files.read_file(f"{ROOT}/configs/vgg16.py:smoke")
    assert config_files.default_workdir("vgg16:smoke").parts[:2] == (
        "runs",
        "vgg16-smoke",
    )
    with pytest.raises(InputError, match="one of the package's: demo, vgg16, vgg19"):
        config_files.read_file("vgg17")


def test_the_wheel_carries_every_package_and_the_configurations():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    told = set(project["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "allcls_jax").rglob("__init__.py")
    }
    assert told == found | {"allcls_jax.configs"}
    assert project["tool"]["setuptools"]["package-dir"] == {
        "allcls_jax.configs": "configs"
    }
    module, _, name = project["project"]["scripts"]["allcls"].partition(":")
    assert getattr(importlib.import_module(module), name) is cli.main
