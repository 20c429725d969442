"""The version of the package, in its one place: the build, files, reports and commands read it."""

__version__ = "0.2.0"
