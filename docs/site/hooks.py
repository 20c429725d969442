"""What mkdocs does not do by itself: the commands' help, and links that leave docs/."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[2]
_COMMANDS = "<!-- the help of every command -->"
_OUTSIDE = re.compile(r"\[[^\]]*\]\(\.\./([^)#]+)(?:#[^)]*)?\)")
_EXAMPLES = re.compile(r"(?<=\n\n)(?:\$ .*\n+)+")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with each page before it is rendered."""
    where = page.file.src_uri
    if _COMMANDS in markdown:
        markdown = markdown.replace(_COMMANDS, commands())
    return _OUTSIDE.sub(lambda link: _named(link[1], where), markdown)


def commands() -> str:
    """The help of every command as Markdown, a heading each."""
    words = ["-m", "typer", "opdf_compile.cli.app", "utils", "docs", "--name", "opdf-compile"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PluginError(f"typer cannot write the commands' help: {done.stderr}")
    # The page itself says what the program is and lists its commands.
    _, *each = re.split(r"^(?=## )", done.stdout, flags=re.MULTILINE)
    return _EXAMPLES.sub(_as_block, "".join(each))


def _as_block(examples: re.Match[str]) -> str:
    """Commands that typer writes as one paragraph each, as one block."""
    lines = [line for line in examples[0].splitlines() if line]
    return "\n".join(["```console", *lines, "```", "", ""])


def _named(path: str, where: str) -> str:
    """A file of the repository that is no page of the site: its path instead of a link."""
    if not (ROOT / path).exists():
        raise PluginError(f"{where} links to {path}, which does not exist")
    return f"`{path}`"
