"""A net of OpenCV: read from a file, fed, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from opdf_compile.parity.runtime.held_model import Array, Run, Stopped
from opdf_compile.parity.runtime.native_log import native_log


def read(path: str, engine: str) -> Any:
    """A net on the processor.

    Args:
        path: The ONNX file.
        engine: The name of OpenCV's constant.

    Raises:
        Stopped: The engine does not take the file.
    """
    import cv2

    with native_log() as log:
        try:
            net = cv2.dnn.readNetFromONNX(path, getattr(cv2.dnn, engine))
            net.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)
        except cv2.error as error:
            raise Stopped(_reason(error)) from error
        if net.empty():  # The new engine's way to refuse; only its log says why.
            raise Stopped(_reason(log().rpartition("DNN/ONNX: ")[2]))
    return net


def hold(net: Any, outputs: Sequence[str], arrays: Mapping[str, Array]) -> Run:
    """Set a net's inputs.

    Raises:
        Stopped: It does not take them.
    """
    import cv2

    try:
        for name, array in arrays.items():
            net.setInput(array, name)
    except cv2.error as error:
        raise Stopped(_reason(error)) from error
    return partial(_run, net, tuple(outputs))


def _run(net: Any, outputs: Sequence[str]) -> list[Array]:
    import cv2

    try:
        with native_log():
            return list(net.forward(outputs))
    except cv2.error as error:
        raise Stopped(_reason(error)) from error


def _reason(error: Any) -> str:
    """What OpenCV says went wrong, on one line and without the C++ files that it came through."""
    text = " ".join(str(getattr(error, "err", "") or error).split())
    # One error may quote another.
    return text.rpartition("error: ")[2].removeprefix("> ")[:200].rstrip(". >")
