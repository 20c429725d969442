"""The parity report: what was found, and its forms for people."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from opdf_compile.artefacts import record_verdict
from opdf_compile.files import atomic_write
from opdf_compile.parity.report import rendering
from opdf_compile.parity.report.parity_result import ParityResult


@dataclass(frozen=True)
class ParityReport(ParityResult):
    """Structure, numerics and latency of a candidate against the untouched reference.

    Attributes:
        verdict: "fail" if any part failed; else "inconclusive" if numerics was not checked, or
            latency or the metric could not be decided; else "pass". It covers the parts that were
            asked for.
        structure: The graphs.
        numerics: The outputs.
        latency: The speed.
        metric: What the user's own metric says on the user's own rows.
        environment: Versions, device, options in force.
        files: By name, the hash, size, opset and exporter of each file that was looked at.

    Example:
        >>> from opdf_compile.parity.report.parity_result import StructurePart
        >>> report = ParityReport("pass", StructurePart("pass", nodes=3))
        >>> bool(report), report.exit_code
        (True, 0)
    """

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one page that needs no network, whole or not at all.

        Raises:
            ArtefactError: The path cannot be written.
        """
        from opdf_compile.parity.report.page import page

        text = page(self)
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def save_in_bundle(self, folder: str | os.PathLike[str]) -> None:
        """Put report.json and report.html into a bundle, and the verdict into its model card.

        Raises:
            ArtefactError: A file cannot be written.
        """
        bundle = Path(folder)
        self.save(bundle / "report.json")
        self.save_html(bundle / "report.html")
        self.record_in_card(bundle)

    def record_in_card(self, bundle: Path) -> None:
        """Put the verdict into a bundle's model card, where it has one."""
        record_verdict(bundle, rendering.card_values(self), rendering.as_markdown(self))

    def to_markdown(self) -> str:
        """A table for a pull request or a CI step summary."""
        return rendering.as_markdown(self)

    def _repr_html_(self) -> str:
        return rendering.as_html(self)

    def __str__(self) -> str:
        return rendering.as_text(self)
