"""Libraries' loggers are silent in a block, and are what they were after it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from opdf_compile.graph.quiet import quiet_libraries


class Heard(logging.Handler):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler, library = Heard(), logging.getLogger("onnxscript")
    library.addHandler(handler)
    yield handler
    library.removeHandler(handler)


def test_a_library_is_heard_around_the_block_and_not_in_it(heard: Heard) -> None:
    child = logging.getLogger("onnxscript.some.part")
    child.error("before")
    with quiet_libraries():
        child.critical("within")
        logging.getLogger("onnxscript.made.within").error("within, by a new logger")
        warnings.warn("within", stacklevel=1)  # pytest makes errors of warnings that get through
    child.error("after")
    assert heard.said == ["before", "after"]


def test_a_logger_with_a_level_of_its_own_was_asked_for(heard: Heard) -> None:
    child = logging.getLogger("onnxscript.asked.for")
    child.setLevel(logging.INFO)
    with quiet_libraries():
        child.info("wanted")
    assert heard.said == ["wanted"]


def test_debugging_hears_everything(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="opdf_compile"), quiet_libraries():
        logging.getLogger("onnxscript.some.part").error("a detail")
    assert heard.said == ["a detail"]


def test_levels_come_back_after_a_failure() -> None:
    library = logging.getLogger("torch")
    level = library.level
    with pytest.raises(ZeroDivisionError), quiet_libraries():
        raise ZeroDivisionError
    assert library.level == level
