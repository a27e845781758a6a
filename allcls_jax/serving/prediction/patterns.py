"""Patterns of paths such as `cells/*/*.png`, matched without holding all matches."""

import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from allcls_jax.data import files


def is_pattern(path: str) -> bool:
    """Tells whether a path has a sign that stands for others."""
    return any(sign in path for sign in "*?[")


def matches(pattern: str) -> Iterator[str]:
    """Yields the paths that match a pattern, in no order and not all at once.

    As in a shell: `*`, `?` and `[…]` within a name, `**` for folders at any depth. What
    operating systems leave behind (`files.is_junk`) is matched by none of them. A
    folder that cannot be listed is yielded itself.
    """
    path = Path(pattern)
    parts = list(path.parts)
    base = parts.pop(0) if path.anchor else ""
    return _matches_below(base, parts)


def _matches_below(base: str, parts: Sequence[str]) -> Iterator[str]:
    if not parts:
        yield base
        return
    part, *rest = parts
    if not is_pattern(part):
        path = str(Path(base, part))
        if os.path.lexists(path):
            yield from _matches_below(path, rest)
        return
    if part == "**":
        yield from _matches_below(base, rest or ["*"])
    try:
        with os.scandir(base or ".") as entries:
            for entry in entries:
                path = str(Path(base, entry.name))
                if files.is_junk(entry.name):
                    continue
                if part == "**":
                    if entry.is_dir(follow_symlinks=False):
                        yield from _matches_below(path, parts)
                elif fnmatch.fnmatch(entry.name, part) and (not rest or entry.is_dir()):
                    yield from _matches_below(path, rest)
    except NotADirectoryError:
        return
    except OSError:
        yield base or "."  # whoever looks into it learns why it cannot be listed
