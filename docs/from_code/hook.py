"""MkDocs hook: writes the reference pages from the code while the site is built.

The pages exist only in the built site, so they cannot be older than the code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import api
import budget
import cli
import hardware
import operators
import report

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PAGES: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": cli.page,
    "reference/api.md": api.page,
    "reference/report.md": report.page,
    "reference/hardware.md": hardware.page,
    "reference/budget.md": budget.page,
    "reference/operators.md": operators.page,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made from the code."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
