"""The version of the package, in its one place: the build, files, reports and commands read it."""

from __future__ import annotations

__version__ = "0.2.0"


def installed_version(distribution: str) -> str | None:
    """The version of a distribution that is installed here, or None."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
