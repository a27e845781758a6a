import errno
from pathlib import Path

import pytest

from allcls_jax import command_line
from allcls_jax.command_line import Parser
from allcls_jax.errors import InputError


def _raise(error):
    raise error


def test_what_a_command_returns_is_its_exit_code():
    assert command_line.run(lambda: None) == 0
    assert command_line.run(lambda: 1) == 1


def test_a_mistake_of_the_user_is_a_line_and_code_2(capsys):
    assert command_line.run(lambda: _raise(InputError("--out: no"))) == 2
    full = OSError(errno.ENOSPC, "No space left on device", "x.csv")
    assert command_line.run(lambda: _raise(full)) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: --out: no"
    assert second.startswith("error: x.csv: No space left on device; make room")


def test_a_defect_of_ours_keeps_its_traceback():
    for defect in (ValueError("x"), ConnectionError("nobody there")):
        with pytest.raises(type(defect)):
            command_line.run(lambda defect=defect: _raise(defect))


def test_the_home_of_nobody_is_a_mistake(capsys):
    assert command_line.run(lambda: _raise_for(Path("~no_such_user/x"))) == 2
    assert "begins with ~" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="ours"):
        command_line.run(lambda: _raise(RuntimeError("ours")))


def _raise_for(path):
    path.expanduser()


def test_ctrl_c_says_what_is_kept(capsys):
    assert command_line.run(lambda: _raise(KeyboardInterrupt()), interrupted="!") == 130
    assert capsys.readouterr().err == "!\n"


def test_paragraphs_of_the_help_stay_apart():
    long = " ".join(["word"] * 40)
    text = Parser("verb", f"{long}\n\nSecond one.", "allcls verb x").format_help()
    assert "\n\nSecond one.\n\n" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "example:\n  allcls verb x\n" in text
