"""The templates of pages and documents; the only user of jinja2.

In HTML everything that is put in is escaped, but what this package drew itself. In
Markdown everything that is put in is escaped, but where a template says `| plain`.
"""

import functools
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_FOLDER = Path(__file__).parent / "templates"


class _Plain(str):
    """Text that goes into Markdown as it is."""


def page(template: str, **content: Any) -> str:
    """Returns an HTML page, everything in `content` being escaped."""
    return _environment(html=True).get_template(template).render(**content)


def document(template: str, **content: Any) -> str:
    """Returns a Markdown document, everything in `content` being escaped."""
    text = _environment(html=False).get_template(template).render(**content)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def drawn(svg: str) -> Markup:
    """Marks an element as one that this package drew, not to be escaped."""
    return Markup(svg)


def escape_markdown(value: Any) -> str:
    """Returns text that Markdown and HTML take for nothing but text, in one line."""
    if isinstance(value, _Plain):
        return str(value)
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", line)


@functools.cache
def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=None if html else escape_markdown,
    )
    environment.filters["drawn"] = drawn
    environment.filters["plain"] = lambda text: _Plain(" ".join(str(text).split()))
    return environment
