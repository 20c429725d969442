"""Which rows of tables are mixed in a forward, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf_compile.distill.augmenting import augmentation
from opdf_compile.distill.mixed_rows import MixedRows, looked_up
from opdf_compile.errors import InputError
from opdf_compile.io.torchvision_shim import prepare_torchvision

Columns = Mapping[str, Tensor]
EXAMPLES, WORDS, WIDTH = 4, 9, 5
generator = torch.Generator().manual_seed(0)
# As many places as examples: an axis of one must not be taken for the other.
IDS = torch.randint(2, WORDS, (EXAMPLES, EXAMPLES), generator=generator)
KINDS = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1]])
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
PARTNER, SHARE = torch.tensor([2, 0, 3, 1]), torch.full((EXAMPLES,), 0.3, dtype=torch.float64)


class Tables(nn.Module):
    """Three tables: of words, of places, of kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH).double()
        self.places = nn.Embedding(EXAMPLES + 2, WIDTH).double()
        self.kinds = nn.Embedding(2, WIDTH).double()

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.words.weight, self.places.weight, self.kinds.weight


def mixed(rows: Tensor) -> Tensor:
    """The oracle: of each example's rows and its partner's."""
    return 0.3 * rows + 0.7 * rows[PARTNER]


def shifted(ids: Tensor) -> Tensor:
    """As decoders begin: with a word in front, and without the last."""
    made = ids.new_zeros(ids.shape)
    made[:, 1:] = ids[:, :-1]
    return made


LOOKUPS: dict[str, tuple[Callable[[Tables, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "module": (lambda t, ids: t.words(ids), lambda ids: ids),
    "function": (lambda t, ids: F.embedding(ids, t.words.weight), lambda ids: ids),
    "by name": (lambda t, ids: F.embedding(input=ids, weight=t.words.weight), lambda ids: ids),
    "operation": (lambda t, ids: torch.embedding(t.words.weight, ids), lambda ids: ids),
    "brackets": (lambda t, ids: t.words.weight[ids], lambda ids: ids),
    "first words": (
        lambda t, ids: t.words.weight.index_select(0, ids[:, 0]),
        lambda ids: ids[:, 0],
    ),
    "cast": (lambda t, ids: t.words(ids.int()), lambda ids: ids),
    "bounded": (lambda t, ids: t.words(ids.clamp(min=3)), lambda ids: ids.clamp(min=3)),
    "cut": (lambda t, ids: t.words(ids[:, 1:]), lambda ids: ids[:, 1:]),
    "joined": (
        lambda t, ids: t.words(torch.cat([torch.zeros_like(ids[:, :1]), ids], 1)),
        lambda ids: F.pad(ids, (1, 0)),
    ),
    "shifted": (lambda t, ids: t.words(shifted(ids)), lambda ids: F.pad(ids, (1, -1))),
    "sorted": (lambda t, ids: t.words(ids.sort(1)[0]), lambda ids: ids.sort(1)[0]),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_rows_are_mixed_however_they_are_looked_up(name: str) -> None:
    tables = Tables()
    forward, index = LOOKUPS[name]
    with MixedRows(PARTNER, SHARE, {"ids": IDS}):
        found = forward(tables, IDS)
    wanted = mixed(tables.words.weight[index(IDS)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)
    assert looked_up(lambda batch: forward(tables, batch["ids"]), {"ids": IDS}, ("ids",)) == {"ids"}


SAME_FOR_ALL: dict[str, Callable[[Tables, Tensor], Tensor]] = {
    "places": lambda t, ids: t.places(torch.arange(ids.shape[1])),
    "places in brackets": lambda t, ids: t.places.weight[torch.arange(ids.shape[1])],
    "places of the dtype of ids": lambda t, ids: t.places(torch.arange(EXAMPLES).type_as(ids)),
    "relative places": lambda t, ids: t.places(
        (torch.arange(len(ids))[:, None] - torch.arange(len(ids))).abs()
    ),
    "one kind": lambda t, ids: t.kinds(torch.zeros_like(ids)),
    "the nearest row": lambda t, ids: t.words(
        (t.places(torch.arange(4)) @ t.words.weight.T).argmax(1)
    ),
    "rows of a mask": lambda t, ids: t.words.weight[torch.arange(WORDS) > ids.min()],
    "columns": lambda t, ids: t.words.weight.index_select(1, ids[:, 0] // 3),
}


@pytest.mark.parametrize("name", SAME_FOR_ALL)
def test_rows_that_are_the_same_for_all_stay(name: str) -> None:
    """Also where there are as many of them as examples."""
    tables, forward = Tables(), SAME_FOR_ALL[name]
    with MixedRows(PARTNER, SHARE, {"ids": IDS}) as region:
        found = forward(tables, IDS)
    assert torch.equal(found, forward(tables, IDS)) and not region.indices


BEHIND: dict[str, Callable[[Tables, Tensor], Tensor]] = {
    "codes": lambda t, rows: t.places((rows @ t.places.weight.T).argmax(-1)),
    "without padding": lambda t, rows: rows.flatten(0, 1)[MASK.flatten().nonzero()[:, 0]],
}


@pytest.mark.parametrize("name", BEHIND)
def test_what_is_mixed_is_not_mixed_again(name: str) -> None:
    """Neither rows that activations choose, nor activations that a mask chooses."""
    tables = Tables()

    def forward(rows: Tensor) -> Tensor:
        return BEHIND[name](tables, rows * MASK[..., None].double())

    with MixedRows(PARTNER, SHARE, {"ids": IDS, "mask": MASK}):
        found = forward(tables.words(IDS))
    torch.testing.assert_close(found, forward(mixed(tables.words(IDS))), rtol=0, atol=1e-15)


@pytest.mark.parametrize("cast", [False, True])
def test_kinds_of_words_are_mixed_and_masks_joined(cast: bool) -> None:
    """Both hold 0 and 1; places are counted off the mask, which stays one."""
    tables = Tables()

    def forward(batch: Columns) -> tuple[Tensor, Tensor]:
        mask, kinds = batch["mask"], batch["kinds"]
        rows = tables.words(batch["ids"]) + tables.kinds(kinds.int() if cast else kinds)
        return rows + tables.places(mask.cumsum(1) * mask), mask

    names = "ids", "kinds", "mask"
    given = dict(zip(names, (IDS, KINDS, MASK), strict=True))
    made = augmentation("mixup", None, forward, given, names)
    assert made.looked_up == {"ids", "kinds"}
    batch = made(given, np.random.default_rng(0))
    share, partner = batch["augmented.share"][0], batch["augmented.partner"]
    with made.mixing(batch):
        found, mask = forward(made.view(batch))
    joined = MASK | MASK[partner]
    words, places, kinds = tables.rows()
    rows = words[IDS] + kinds[KINDS] + places[joined.cumsum(1) * joined]
    torch.testing.assert_close(found, share * rows + (1 - share) * rows[partner])
    assert torch.equal(mask, joined)


FLAT: dict[str, Callable[[Tables, Columns], Tensor]] = {
    "flattened": lambda t, batch: t.words(batch["ids"].flatten()),
    "transposed": lambda t, batch: t.words(batch["ids"].T),
}


@pytest.mark.parametrize("places", [2, 3, EXAMPLES])
@pytest.mark.parametrize("name", FLAT)
def test_look_ups_without_an_axis_of_examples_are_refused(name: str, places: int) -> None:
    """Also where there are as many places as examples."""
    tables = Tables()
    with pytest.raises(InputError, match="looked up by ids in the shape .* as the first axis"):
        looked_up(lambda batch: FLAT[name](tables, batch), {"ids": IDS[:, :places]}, ("ids",))


def test_ids_that_only_select_are_refused() -> None:
    """A product with ones and zeros looks up in secret: nothing would be mixed."""
    tables = Tables()

    def forward(batch: Columns) -> Tensor:
        return (
            tables.kinds(batch["kinds"])
            + F.one_hot(batch["ids"], WORDS).double() @ tables.words.weight
        )

    with pytest.raises(InputError, match="the input ids holds whole numbers that look up no rows"):
        augmentation("mixup", None, forward, {"ids": IDS, "kinds": KINDS}, ("ids", "kinds"))


def test_a_teacher_that_sees_another_mix_is_refused() -> None:
    tables = Tables()
    batch = {"ids": IDS, "kinds": KINDS}
    with pytest.raises(InputError, match="by ids and the teacher by ids, kinds, wanted the same"):
        augmentation(
            "mixup",
            None,
            lambda batch: tables.words(batch["ids"]),
            batch,
            ("ids", "kinds"),
            teacher=lambda batch: tables.words(batch["ids"]) + tables.kinds(batch["kinds"]),
        )


def _bert() -> tuple[nn.Module, nn.Module]:
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
        )
    )
    return model, model.get_input_embeddings()


def _gpt2() -> tuple[nn.Module, nn.Module]:
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=2, n_head=2, n_positions=8))
    return model, model.get_input_embeddings()


def _t5() -> tuple[nn.Module, nn.Module]:
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(
        T5Config(vocab_size=WORDS, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    )
    return model, model.get_input_embeddings()


@pytest.mark.parametrize("make", [_bert, _gpt2, _t5])
def test_transformers_answer_as_to_embeddings_that_are_given(
    make: Callable[[], tuple[Any, nn.Module]],
) -> None:
    """The oracle is their own way in behind the table: inputs_embeds."""
    prepare_torchvision()
    torch.manual_seed(0)
    model, table = make()
    model.double().eval()
    given = {"input_ids": IDS, "attention_mask": MASK}

    def forward(batch: Columns) -> Tensor:
        names = "input_ids", "attention_mask"
        hidden: Tensor = model(**{name: batch[name] for name in names}).last_hidden_state
        return hidden

    made = augmentation("mixup", 1.0, forward, given, tuple(given))
    assert made.looked_up == {"input_ids"}
    batch = made(given, np.random.default_rng(0))
    share, partner = batch["augmented.share"][0], batch["augmented.partner"]
    with torch.no_grad():
        with made.mixing(batch):
            found = forward(made.view(batch))
        rows = share * table(IDS) + (1 - share) * table(IDS[partner])
        wanted = model(inputs_embeds=rows, attention_mask=MASK | MASK[partner]).last_hidden_state
        plain = forward(given)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, plain, atol=1e-3)
