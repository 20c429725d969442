"""The extras of the package as pip takes them: by what they require.

The package is on no index, so that its own name in a remedy would install nothing.
"""

from __future__ import annotations

import functools
import re
import shlex
from importlib import metadata

_DISTRIBUTION = "opdf-compile"
# "onnxruntime>=1.22; extra == 'cpu'", with a marker of its own before it or not.
_OF_EXTRA = re.compile(r"^([^;]+);(?:.*\band\b)?\s*extra\s*==\s*['\"]([\w.-]+)['\"]\s*$")


@functools.cache
def requirements_of(extra: str) -> str:
    """What an extra requires, as arguments of ``pip install``.

    Args:
        extra: Its name in pyproject.toml.

    Returns:
        The requirements, quoted for a shell; the extra of a checkout where the package runs from
        its source tree and nothing tells what it requires.

    Example:
        >>> requirements_of("distill")
        "'accelerate>=1.0'"
    """
    try:
        told = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        told = []
    rows = [found.groups() for line in told if (found := _OF_EXTRA.match(line))]
    wanted = [text.strip() for text, name in rows if name == extra]
    return " ".join(map(shlex.quote, wanted)) if wanted else shlex.quote(f".[{extra}]")
