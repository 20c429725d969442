"""Exit codes, one sentence, no traceback, help with examples: what holds for every command."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest

from opdf_compile import __version__
from opdf_compile.cli import app as app_module
from opdf_compile.cli import environment, main
from opdf_compile.errors import InternalError, PlanError

COMMANDS = (
    *("inspect", "plan", "expand", "fold", "export", "check-data", "verify", "distill", "advise"),
    *("demo", "doctor", "parametrizations", "diff"),
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `doctor` end with an error of choice."""

    def install(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr(environment, "examine", fail)

    return install


def one_sentence(capsys: Capture) -> str:
    """The sentence on stderr; fails when there is more, or anything on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("opdf-compile: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_the_shared_options(name: str, capsys: Capture) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"$ opdf-compile {name}" in out
    for option in ("--json", "--quiet", "--verbose", "--debug"):
        assert option in out


def test_help_lists_the_commands_and_no_others(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if f"│ {name} " not in out] == []
    assert "--install-completion" in out


def test_no_arguments_print_the_help(capsys: Capture) -> None:
    assert main([]) == 0
    assert "Usage" in capsys.readouterr().out


def test_the_version_is_printed_and_listed_in_the_help(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"opdf-compile {__version__}\n"
    assert main(["--version", "inspect"]) == 0  # Through the parser, as any option is.
    assert capsys.readouterr().out == f"opdf-compile {__version__}\n"
    assert main(["--help"]) == 0
    assert "--version" in capsys.readouterr().out


def test_the_version_needs_neither_torch_nor_a_command() -> None:
    program = (
        "import sys; from opdf_compile.cli import main; code = main(['--version']); "
        "print(code, sorted({'torch', 'typer', 'rich', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"opdf-compile {__version__}\n0 []\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspekt"], "No such command 'inspekt', did you mean 'inspect'?; see opdf-compile"),
        (["inspect"], "Missing argument 'MODEL'; see opdf-compile inspect --help"),
        (["inspect", "m:f", "--nope"], "No such option: --nope"),
        (["plan", "m:f"], "Missing option '-o'"),
        (
            ["plan", "m:f", "-o", "p.json", "--cores", "three"],
            "value for '--cores': Input should be a valid integer",
        ),
        (["verify", "x.onnx", "--device", "cudda"], "'cudda' is not one of 'auto', 'cpu', 'cuda'"),
        (["verify", "x.onnx", "--latency", "fast"], "'fast' is not one of"),
        (
            ["verify", "x.onnx", "--budget", "0"],
            "budget is 0; give seconds above 0",
        ),
        (["verify", "x.onnx", "--margin", "big"], "margin is 'big'; give auto or a number"),
        (["verify", "x.onnx", "--margin", "nan"], "margin is 'nan'"),
        (["verify", "x.onnx", "--only", "speed"], "only is 'speed'; give one or more of"),
        (["verify", "x.onnx", "--only", ","], "only is ''; give one or more of"),
        (["export", "m:f", "-o", "x.onnx", "--dtype", "int4"], "'int4' is not one of"),
        (["expand", "m:f", "-o", "x.pth"], "-o x.pth has the suffix '.pth'; wanted .pt2 or"),
        (["fold", "x.pt2", "-o", "x.bin"], "-o x.bin has the suffix '.bin'; wanted .pt2"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(
    arguments: list[str], sentence: str, capsys: Capture
) -> None:
    assert main(arguments) == 2
    assert sentence in one_sentence(capsys)


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (PlanError("plan.json says\n  nothing"), 2, "opdf-compile: plan.json says nothing\n"),
        (InternalError("fold lost a bias"), 70, "internal error: InternalError: fold lost a bias;"),
        (ZeroDivisionError("division by zero"), 70, "internal error: ZeroDivisionError: division"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_becomes_a_code_and_a_sentence(
    error: BaseException,
    code: int,
    sentence: str,
    broken: Callable[[BaseException], None],
    capsys: Capture,
) -> None:
    broken(error)
    assert main(["doctor"]) == code
    if code != 130:
        assert sentence in one_sentence(capsys)
        return
    # Some versions of typer print an empty line for a Ctrl-C, others nothing.
    assert capsys.readouterr().err.strip() == "opdf-compile: interrupted"


def test_debug_shows_the_traceback(
    broken: Callable[[BaseException], None], capsys: Capture
) -> None:
    broken(PlanError("no"))
    assert main(["doctor", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("opdf-compile: no\n")


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ([], {"warning: w"}),
        (["-q"], set()),
        (["-v"], {"warning: w", "info: i", "noise"}),
        (["--debug"], {"warning: w", "info: i", "debug: d", "noise"}),
    ],
)
def test_verbosity(
    options: list[str], heard: set[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def speak() -> list[object]:
        logger = logging.getLogger("opdf_compile.something")
        logger.debug("d")
        logger.info("i")
        logger.warning("w")
        logger.warning("w")
        warnings.warn("noise", stacklevel=1)
        print("a model that prints")  # noqa: T201
        return []

    monkeypatch.setattr(environment, "examine", speak)
    assert main(["doctor", *options]) == 0
    out, err = capsys.readouterr()
    assert "a model that prints" not in out
    assert {line for line in ("warning: w", "info: i", "debug: d", "noise") if line in err} == heard
    assert err.count("warning: w") == ("warning: w" in heard), "said once"
    assert logging.getLogger("opdf_compile").handlers == []


def test_every_command_of_the_app_has_a_file() -> None:
    names = {command.name for command in app_module.app.registered_commands}
    assert names == set(COMMANDS)


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "opdf_compile", "verify", "x.onnx", "--device", "cudda"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_shell_completion_knows_the_commands() -> None:
    words = {"_OPDF_COMPILE_COMPLETE": "complete_bash", "COMP_WORDS": "opdf-compile in"}
    done = subprocess.run(
        [sys.executable, "-m", "opdf_compile"],
        env=os.environ | words | {"COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["inspect"]
