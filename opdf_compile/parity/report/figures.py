"""Figures of a report, as files and as SVG inside a page."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdf_compile.errors import InputError, InternalError
from opdf_compile.files import atomic_write
from opdf_compile.parity.latency.latency_result import LatencyResult, ShapeResult
from opdf_compile.parity.report.latency_plots import STYLE, latency_figure, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from opdf_compile.parity.structure.picture import Neighbourhood

SUFFIXES = (".png", ".svg", ".pdf")
_PICTURE_SIZE = (11.0, 5.6)


def require_installed(what: str, *packages: str) -> None:
    """Refuse a page or a plot before the work that it would show.

    A machine that only verifies does without the packages that draw.

    Raises:
        InputError: One of them is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{what} cannot be drawn without {' and '.join(missing)}, not installed here; "
            f"pip install {' '.join(missing)}, or do not ask for it"
        )


def plot_target(path: Path) -> Path:
    """The path, if a plot can be written to it.

    Raises:
        InputError: matplotlib is not installed, the name has another suffix, or there is no folder.
    """
    require_installed(f"the plot {path}", "matplotlib")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"the plot {path} is no {', '.join(SUFFIXES)} file; give such a name")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of the plot does not exist; create it")
    return path


def plot_latency(result: LatencyResult, path: Path) -> None:
    """Draw a measurement, a row for each shape, and write it whole or not at all.

    Raises:
        ArtefactError: The path cannot be written.
        InternalError: The result holds no measurement.
    """
    if not result.per_shape:
        raise InternalError("the latency plot was asked for without a measurement")
    import matplotlib

    with matplotlib.rc_context(STYLE):
        _save(latency_figure(result, result.per_shape), path)


def plot_difference(picture: Neighbourhood, path: Path) -> None:
    """Draw the first difference of two graphs and write it whole or not at all.

    Raises:
        ArtefactError: The path cannot be written.
    """
    _save(_difference_figure(picture), path)


def latency_svg(result: LatencyResult, shape: ShapeResult) -> str:
    """One shape's plots as an SVG element."""
    import matplotlib

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": repr(shape.shape)}):
        return _svg(latency_figure(result, [shape]))


def difference_svg(picture: Neighbourhood) -> str:
    """The first difference of two graphs as an SVG element."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "difference"}):
        return _svg(_difference_figure(picture))


def _difference_figure(picture: Neighbourhood) -> Figure:
    figure = new_figure(_PICTURE_SIZE)
    picture.draw(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, metadata=_metadata(path))


def _svg(figure: Figure) -> str:
    """The figure without the XML prologue, which has no place inside a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The metadata block names vocabularies on the web; the page shall hold no address at all.
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def _metadata(path: Path) -> dict[str, Any]:
    """Without a date, equal measurements give equal files."""
    if path.suffix.lower() == ".png":
        return {"Software": "opdf-compile"}
    return {"Date": None} if path.suffix.lower() == ".svg" else {"CreationDate": None}
