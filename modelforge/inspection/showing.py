"""`modelforge data inspect`: inspect files and show what was found on a console, as JSON, or as a page."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from modelforge.data.store.prepared_once import Say
from modelforge.inspection.content import content
from modelforge.inspection.inspecting import inspect_files
from modelforge.inspection.page import refuse_unwritable, write_page
from modelforge.inspection.terminal import renderables


def show(
    paths: Sequence[str], settings: Sequence[str], console: Console, *, say: Say, html: Path | None, as_json: bool
) -> None:
    """Inspect files; the page, if one is asked for, is written besides."""
    if html is not None:
        refuse_unwritable(html)
    found = inspect_files(paths, settings, say=say)
    parts = content(found)
    if html is not None:
        write_page(html, parts, title=f"Inspection of {', '.join(file.name for file in found.files[:3])}")
        say(f"written to {html}")
    if as_json:
        console.print(Text(json.dumps(found.to_json(), indent=1, allow_nan=False)), soft_wrap=True)
        return
    for renderable in renderables(parts):
        console.print(renderable, soft_wrap=isinstance(renderable, Text))
