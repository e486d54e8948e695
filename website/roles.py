"""What docstrings say in the roles of reStructuredText, said in Markdown: ``:func:`fit``` becomes `fit`."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?([\w.]+)`")


def plain(text: str) -> str:
    """``text`` with the last name of each role in backticks."""
    return ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", text)


class Roles(griffe.Extension):
    """Rewrites the docstring of everything that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
