"""Which systems there are. A new one is a module in `systems/` and a name here."""

from __future__ import annotations

from importlib import import_module

from claims.claim import System

# Each is a module of `systems` that holds a SYSTEM.
NAMES: tuple[str, ...] = ("d2nwg", "distillm", "lowdimensional", "mixkd", "okd", "r2kd")


def system(name: str) -> System:
    """The system of this name."""
    found: System = import_module(f"claims.systems.{name}").SYSTEM
    return found
