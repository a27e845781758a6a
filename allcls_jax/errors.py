"""The error that a user can mend: what the entry points turn into exit code 2.

Everything else that is raised is a defect of this package and keeps its traceback.
"""

from collections.abc import Iterable


class InputError(ValueError):
    """A setting, file or folder that the user gave cannot be used.

    The message gives the name, the value, the rule it breaks and the remedy.
    """


def list_problems(title: str, problems: Iterable[str], *, remedy: str) -> InputError:
    """Returns one `InputError` that names every problem, not only the first.

    Args:
      title: what was being read, without a full stop.
      problems: one line each; up to 50 are shown, the rest is counted.
      remedy: what the user can do, one sentence.
    """
    shown = list(problems)
    count = len(shown)
    lines = [f"  - {problem}" for problem in shown[:50]]
    if count > len(lines):
        lines.append(f"  … and {count - len(lines)} more")
    noun = "problem" if count == 1 else "problems"
    return InputError(f"{title}: {count} {noun}\n" + "\n".join(lines) + f"\n{remedy}")
