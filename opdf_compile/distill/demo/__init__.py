"""The demo: the recipe that `distill --init` writes, raced plain against over-parameterised."""

from __future__ import annotations

from opdf_compile.distill.demo.running import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
