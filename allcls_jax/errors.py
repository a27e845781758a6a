"""The error that a user can mend: what the entry points turn into exit code 2.

Everything else that is raised is a defect of this package and keeps its traceback.
"""

import errno
import os
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


def explain_failure(error: InputError | OSError) -> str | None:
    """Returns what to tell the user of an error, or None if it is a defect of ours.

    A file that the system refuses to read or write is the user's to mend: permissions,
    space and disks are named in `--out`, `--workdir` and `--config.cache_dir`.
    """
    if isinstance(error, InputError):
        return str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    closed = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    if error.filename is None and not full and not closed:
        return None
    file = "a file" if error.filename is None else os.fsdecode(error.filename)
    folders = "another --out, --workdir or --config.cache_dir"
    if full:
        remedy = f"make room, or give {folders}"
    elif closed:
        remedy = f"change its permissions, or give {folders}"
    else:
        remedy = f"mend it, or give {folders}"
    return f"{file}: {error.strerror}; {remedy}"
