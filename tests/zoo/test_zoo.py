"""Every architecture of the zoo; two of the quickest in `make test`."""

from __future__ import annotations

from typing import Any

import pytest
from bench.sweep import named
from zoo.architectures import ARCHITECTURES, QUICK, exported
from zoo.journey import travel
from zoo.runner import run

# Upstream limits; docs/zoo.md has the sentence of each.
FAILING: dict[str, str] = {
    "timm/tf_efficientnet_cc_b0_4e": "a convolution has as many groups as the batch has images, "
    "and `group` of ONNX's Conv is a fixed number",
}


# One of each library in every run; `test_architecture` has them all.
UNMARKED = ("timm/gmlp_ti16_224", "transformers/albert")


@pytest.mark.parametrize(
    "name", [n if n in UNMARKED else pytest.param(n, marks=pytest.mark.slow) for n in QUICK]
)
def test_quick(name: str):
    rows: list[dict[str, Any]] = []
    row = travel(
        ARCHITECTURES[name],
        cores=2,
        export=name in (QUICK[0], UNMARKED[0]),
        note=lambda row: rows.append(dict(row)),
    )
    assert row["status"] == "passed", f"{row['step']}: {row['reason']}"
    # What a killed process would leave: the step that was next, and the figures up to there.
    assert [r["step"] for r in rows[:2]] == ["build", "trace"] and "rung" not in rows[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name: str, request: pytest.FixtureRequest):
    if name in FAILING:
        request.applymarker(pytest.mark.xfail(reason=FAILING[name], strict=True))
    options = {"cores": 2, "export": exported(name, "half")}
    (row,) = run([name], lambda name: options)
    assert row["status"] == "passed", f"{row['step']}: {row['reason']}"


def test_the_lists():
    libraries = ("timm", "transformers")
    by_library = {library: named(f"{library}/*", ARCHITECTURES) for library in libraries}
    assert len(by_library["timm"]) >= 60 and len(by_library["transformers"]) >= 40
    assert sum(map(len, by_library.values())) == len(ARCHITECTURES)
    assert set(UNMARKED) <= set(QUICK) <= set(ARCHITECTURES) and len(QUICK) == len(set(QUICK)) == 12
    for names in by_library.values():
        half = sum(exported(name, "half") for name in names)
        assert half == (len(names) + 1) // 2
    assert set(FAILING) <= set(ARCHITECTURES)
    assert named("timm/resnet18,no/such", ARCHITECTURES) == ["timm/resnet18"]
