"""Drawn samples: ids stay in the table that the graph reads, rows suffice, no query is blind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from quick import quick
from torch import Tensor, nn

from opdf_compile.artefacts.check_file import CheckData
from opdf_compile.graph.tracing import trace
from opdf_compile.io.evidence.evaluating import gather_check_data
from opdf_compile.io.evidence.id_ranges import IdRange, id_ranges
from opdf_compile.io.evidence.samples import ENOUGH_ROWS, MOST_SAMPLES


class Reads(nn.Module):
    """Ids in, rows of a table out, on the way that a test gives."""

    def __init__(self, way: Callable[[Reads, Tensor], Tensor], rows: int = 20) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 4)
        self.other = nn.Embedding(7, 4)
        self.way = way

    def forward(self, ids: Tensor) -> Tensor:
        return self.way(self, ids)


def grad_off(m: Reads, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return m.table(ids)


def indexed(m: Reads, ids: Tensor) -> Tensor:
    return m.table.weight[ids]


@torch.library.custom_op("opdf_tests::gather", mutates_args=())
def gathered(ids: Tensor) -> Tensor:
    """An operator with the name of one of torch's, and with other arguments."""
    return ids.clone()


@gathered.register_fake
def _(ids: Tensor) -> Tensor:
    return torch.empty_like(ids)


# A way from ids to a table of 20 rows (and another of 7), and what the ids may be.
WAYS: dict[str, tuple[Callable[[Reads, Tensor], Tensor], IdRange | None]] = {
    "embedding": (lambda m, ids: m.table(ids), IdRange(0, 19)),
    "index": (indexed, IdRange(0, 19)),
    "index_select": (
        lambda m, ids: torch.index_select(m.table.weight, 0, ids.reshape(-1)),
        IdRange(0, 19),
    ),
    "gather": (
        lambda m, ids: m.table.weight.sum(1).expand(ids.shape[0], 20).gather(1, ids),
        IdRange(0, 19),
    ),
    "another library's gather": (lambda m, ids: m.table(gathered(ids)), None),
    "cast": (lambda m, ids: m.table(ids.to(torch.int32)), IdRange(0, 19)),
    "views": (
        lambda m, ids: m.table(ids.reshape(-1).unsqueeze(0).transpose(0, 1)[:, 0]),
        IdRange(0, 19),
    ),
    "clamp": (lambda m, ids: m.table(ids.clamp(2, 11)), IdRange(2, 11)),
    "clamp above the table": (lambda m, ids: m.table(ids.clamp(min=1, max=90)), IdRange(1, 19)),
    "shift": (lambda m, ids: m.table(ids + 2), IdRange(-2, 17)),
    "shift down": (lambda m, ids: m.table(ids - 2), IdRange(2, 21)),
    "factor": (lambda m, ids: m.table(ids * 3), IdRange(0, 6)),
    "two tables": (lambda m, ids: m.table(ids) + m.other(ids), IdRange(0, 6)),
    "one table twice": (lambda m, ids: m.table(ids) + m.table(ids.flip(1)), IdRange(0, 19)),
    "concatenated": (
        lambda m, ids: m.table(torch.cat([torch.zeros_like(ids[:, :1]), ids], 1)),
        IdRange(0, 19),
    ),
    "padding": (
        lambda m, ids: m.table(ids) * (ids != 3)[..., None],
        IdRange(0, 19, frozenset({3})),
    ),
    "ignored label": (
        lambda m, ids: m.table(ids.masked_fill(ids == -100, 0)),
        IdRange(0, 19),
    ),
    "nested graph": (grad_off, IdRange(0, 19)),
    "classes": (
        lambda m, ids: nn.functional.cross_entropy(
            m.table.weight[:2].expand(ids.numel(), 2, 4).transpose(1, 2)[..., 0], ids.reshape(-1)
        ),
        IdRange(0, 3),
    ),
    "no table": (lambda m, ids: ids.float() * m.table.weight[0, 0], None),
    "a sum is no longer an id": (
        lambda m, ids: m.table((ids.cumsum(1) * 0).clamp(0, 5)) * ids[..., None],
        None,
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_range_of_ids_is_found_from_the_graph(name: str) -> None:
    way, wanted = WAYS[name]
    ids = torch.tensor([[2, 1, 2, 3], [3, 2, 1, 2]])
    program = torch.export.export(Reads(way).eval(), (ids,), strict=False)
    assert id_ranges(program, ("ids",)) == ({} if wanted is None else {"ids": wanted})


def samples_of(model: nn.Module, *args: Any, **options: Any) -> CheckData:
    traced = trace(model, args, dynamic=options.pop("dynamic", None), phases=("eval",))
    return gather_check_data(
        traced.programs["eval"],
        (traced.args, traced.kwargs),
        axis_names={name: traced.axis_names.get(name, {}) for name in traced.input_names},
        output_names=traced.output_names,
        dtype="float32",
        **options,
    )


def test_special_ids_stay_where_the_example_has_them() -> None:
    ids = torch.tensor([[5, 6, 7, 3], [8, 9, 3, 3]])
    data = samples_of(Reads(WAYS["padding"][0]), ids, dynamic={"ids": ("B", "S")})
    for sample in data.samples[1:]:
        drawn = sample.inputs["ids"]
        if drawn.shape[1] == 4:
            assert ((drawn == 3) == np.resize(ids.numpy() == 3, drawn.shape)).all()
        else:
            assert not (drawn == 3).any()


def test_an_example_outside_the_range_is_believed() -> None:
    """Where the graph was misread, the example's own values are right."""
    data = samples_of(
        Reads(lambda m, ids: m.table(torch.where(ids < 0, 0, ids))), torch.tensor([[-1, 4]])
    )
    assert all(set(s.inputs["ids"].reshape(-1)) <= {-1, 4} for s in data.samples)


@pytest.mark.parametrize(("batch", "dynamic"), [(1, False), (2, None), (5, None), (3, False)])
def test_there_are_enough_rows(batch: int, dynamic: Any) -> None:
    data = samples_of(nn.Linear(3, 2), torch.randn(batch, 3), dynamic=dynamic)
    rows = sum(sample.rows("output") for sample in data.samples)
    assert rows >= ENOUGH_ROWS and 4 <= len(data.samples) <= MOST_SAMPLES


class Windowed(nn.Module):
    """Attention in which each query sees the tokens up to `window` before it."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.embed, self.window = nn.Embedding(30, 8), window

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1])
        back = place[:, None] - place[None]
        seen = ((back >= 0) & (back < self.window))[None] & mask.bool()[:, None]
        x = self.embed(ids)[:, None]
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=seen[:, None])


def allowed(sample: Any, window: int) -> bool:
    """Whether every query of a sample sees a key, told in numpy."""
    mask = sample.inputs["mask"].astype(bool)
    place = np.arange(mask.shape[1])
    back = place[:, None] - place[None]
    seen = ((back >= 0) & (back < window))[None] & mask[:, None]
    return bool(seen.any(-1).all())


@pytest.mark.parametrize("padding", quick([0, 2], {2}))
def test_drawn_masks_leave_every_query_of_a_foreign_file_a_key(padding: int) -> None:
    ids = torch.randint(0, 30, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 16 - padding :] = 0
    axes = {"ids": ("B", "S"), "mask": ("B", "S")}
    data = samples_of(Windowed(3), ids, mask, dynamic=axes, foreign=True)
    assert len(data.samples) >= 4
    assert all(allowed(sample, 3) for sample in data.samples)


def test_an_example_with_blind_queries_is_left_out_for_a_foreign_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = torch.randint(0, 30, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with caplog.at_level(logging.WARNING):
        axes = {"ids": ("B", "S"), "mask": ("B", "S")}
        data = samples_of(Windowed(3), ids, mask, dynamic=axes, foreign=True)
    assert "attention queries that their mask allows no key" in caplog.text
    assert all(allowed(sample, 3) for sample in data.samples)


def test_small_sigmoids_carry_the_roundings_of_their_range() -> None:
    class Map(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(x - 12)

    sample = samples_of(Map(), torch.randn(2, 5)).samples[0]
    largest, mean = sample.function["output"]
    assert largest == pytest.approx(2.0**-23) and mean == pytest.approx(2.0**-23)
    assert largest > 100 * sample.error["output"]
    assert not samples_of(nn.Linear(5, 2), torch.randn(2, 5)).samples[0].function


class Doubled(nn.Module):
    """One input is twice as long as the other."""

    def forward(self, x: Tensor, pairs: Tensor) -> Tensor:
        return torch.cat([x, x]) * pairs


def test_a_size_that_follows_from_another_moves_with_it() -> None:
    data = samples_of(Doubled(), torch.rand(4, 3), torch.rand(8, 3), dynamic=None)
    rows = {sample.inputs["x"].shape[0] for sample in data.samples}
    assert len(rows) > 1
    for sample in data.samples:
        assert sample.inputs["pairs"].shape[0] == 2 * sample.inputs["x"].shape[0]
