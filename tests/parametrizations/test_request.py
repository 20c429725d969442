"""The text that asks for a parametrization: read, written, checked against its options."""

from __future__ import annotations

from typing import Any

import pytest

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations import Request, registered, registered_names, requested
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.request import Option

READ = [
    ("mpo", "mpo", {}, "mpo"),
    (" made-of two ( ) ", "made-of two", {}, "made-of two"),
    ("spectral(residual=none)", "spectral", {"residual": "none"}, "spectral(residual=none)"),
    (
        "a( b = 4 ,c=true,d=False)",
        "a",
        {"b": 4, "c": True, "d": "False"},
        "a(b=4, c=true, d=False)",
    ),
    ("a(b=-3, c=+2)", "a", {"b": -3, "c": 2}, "a(b=-3, c=2)"),
    ("a(b=.5, c=1e-3, d=2.)", "a", {"b": 0.5, "c": 0.001, "d": 2.0}, "a(b=0.5, c=0.001, d=2.0)"),
    ("a(b=nan)", "a", {"b": "nan"}, "a(b=nan)"),
]


@pytest.mark.parametrize(("text", "name", "options", "written"), READ, ids=[r[0] for r in READ])
def test_a_text_is_read_and_written(
    text: str, name: str, options: dict[str, Any], written: str
) -> None:
    request = Request.parse(text)
    assert (request.name, request.options) == (name, options)
    assert [type(v) for v in request.options.values()] == [type(v) for v in options.values()]
    assert str(request) == written
    assert Request.parse(written) == request


UNREAD: list[tuple[Any, str]] = [
    ("", "^'' asks for nothing that can be read, wanted NAME or NAME"),
    ("(cores=3)", "asks for nothing that can be read"),
    ("mpo(cores=3", "asks for nothing that can be read"),
    ("mpo)cores=3(", "asks for nothing that can be read"),
    ("mpo(cores=(3))", "asks for nothing that can be read"),
    ("mpo(cores=3) and more", "asks for nothing that can be read"),
    (3, "^3 asks for nothing that can be read"),
    ("mpo(3)", r"^'mpo\(3\)' has '3' between its brackets, wanted key=value"),
    ("mpo(cores=3,)", "has '' between its brackets"),
    ("mpo(2cores=3)", "has '2cores=3' between its brackets"),
    ("mpo(cores=)", "gives cores the value '', wanted a number, true, false or a word"),
    ("mpo(cores='3')", "gives cores the value \"'3'\", wanted a number, true, .* without quotes"),
    ("mpo(cores=3==3)", "gives cores the value '3==3'"),
    ("mpo(cores=1e99999)", "gives cores the value '1e99999'"),
    (
        "mpo(cores=" + "9" * 5000 + ")",
        r"^'mpo\(cores=9{60,80}\.\.\.' gives cores the value '9+\.\.\.'",
    ),
    ("mpo(cores=3, cores=4)", "gives cores twice, wanted it once; remove one$"),
    ("mpo(cores=size(3))", "asks for nothing that can be read"),
]


@pytest.mark.parametrize(("text", "sentence"), UNREAD, ids=[str(r[0])[:30] for r in UNREAD])
def test_what_cannot_be_read_is_said(text: Any, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        Request.parse(text)


KNOWN = {
    "rank": Option(int, None, "the rank"),
    "rate": Option(float, 5.0, "the rate"),
    "tied": Option(bool, False, "whether it is tied"),
    "label": Option(str, "a", "its label"),
    "rest": Option(("all", "none"), "all", "what is left"),
}


def test_options_of_every_kind_are_taken() -> None:
    text = "it(rank=3, rate=2, tied=true, label=b, rest=none)"
    request = Request.parse(text).checked(KNOWN)
    assert request.options == {"rank": 3, "rate": 2, "tied": True, "label": "b", "rest": "none"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "it(rnak=3)",
            r"it has no option 'rnak' \(did you mean 'rank'\?\); it has rank, rate, tied",
        ),
        ("it(colour=red)", "it has no option 'colour'; it has rank"),
        ("it(rank=3.0)", "the option rank of it is 3.0, wanted a whole number: the rank$"),
        ("it(rank=true)", "the option rank of it is true, wanted a whole number"),
        ("it(rate=true)", "the option rate of it is true, wanted a number"),
        ("it(rate=inf)", "the option rate of it is inf, wanted a number"),
        ("it(rate=1e999)", "the option rate of it is inf, wanted a number"),
        ("it(tied=1)", "the option tied of it is 1, wanted true or false"),
        ("it(label=3)", "the option label of it is 3, wanted a word"),
        ("it(rest=some)", "the option rest of it is some, wanted one of all, none: what is left"),
    ],
)
def test_options_that_do_not_fit_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        Request.parse(text).checked(KNOWN)


def test_one_without_options_says_so() -> None:
    with pytest.raises(PlanError, match="svd has no option 'rank'; it has none$"):
        requested("svd(rank=3)")
    with pytest.raises(PlanError, match=r"'wdie' is not known; .*did you mean wide\?"):
        requested("wdie(expansion=2)")


@pytest.mark.parametrize("name", registered_names())
def test_the_options_of_every_parametrization_reach_its_spec(name: str) -> None:
    """What is given by its default, where it has one, is what is proposed without it."""
    by, form = registered(name), WeightForm((16, 8, 3, 3), kernel=9)
    for key, option in by.options.items():
        assert option.doc
        assert option.default is None or option.accepts(option.default)
        given = "2" if option.default is None else str(option.default)
        requested(f"{name}({key}={given.lower() if option.kind is bool else given})")
        if key == "cores":
            assert option.default == by.usual_cores
        elif option.default is not None:
            usual = by.propose(form, cores=by.usual_cores)
            assert by.propose(form, cores=by.usual_cores, **{key: option.default}) == usual
            assert usual in by.candidates(form, **{key: option.default})


OTHERS = [
    ("wide(expansion=2)", {"expansion": 2}),
    ("powerprop(exponent=3)", {"exponent": 3}),
    ("gains(decay_share=0.1)", {"decay_share": 0.1}),
    ("spectral(rank=3, outer_rate=2)", {"rank": 3, "outer_rate": 2}),
    ("spectral(outer_rate=2)", {"outer_rate": 2}),
    ("shared(blocks=2)", {"blocks": 2}),
    ("shared(blocks=7)", {"blocks": 4}),  # 16 rows: the next number below that divides them.
]


@pytest.mark.parametrize(("text", "wanted"), OTHERS, ids=[r[0] for r in OTHERS])
def test_another_value_is_in_every_spec(text: str, wanted: dict[str, Any]) -> None:
    request, form = requested(text), WeightForm((16, 72))
    by, options = registered(request.name), dict(request.options)
    specs = [by.propose(form, cores=by.usual_cores, **options), *by.candidates(form, **options)]
    found = [{key: getattr(spec, key) for key in wanted} for spec in specs]
    assert found == [wanted] * len(specs)
