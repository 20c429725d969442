"""Responses of transformers' models and of others, against a loop without padding and caches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from language_models import END, VOCABULARY, Causal, gpt2, llama
from scipy.stats import chisquare
from torch import Tensor, nn

from opdf_compile.distill.generation import Sampling, end_token, respond
from opdf_compile.errors import InputError

PROMPTS = [torch.tensor(ids) for ids in ([4, 9], [7], [3, 8, 2, 11, 5], [6, 6, 6])]
MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: gpt2(n_inner=64),
    "llama": llama,
    "own": lambda: Causal(16, 1, drop=0.5),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = MODELS[name]().double()
    with torch.no_grad():  # Further from even, so that the most probable token is one.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def logits_of(model: nn.Module, ids: list[int]) -> Tensor:
    """The next token's, of one row alone."""
    with torch.no_grad():
        found = model.eval()(torch.tensor([ids]))
    whole: Tensor = getattr(found, "logits", found)
    return whole[0, -1]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_responses_are_those_of_each_row_alone(name: str) -> None:
    model, most = made(name), 9
    found = respond(model, PROMPTS, Sampling(most, temperature=0), end=END, seed=0)
    lengths = set()
    for prompt, response in zip(PROMPTS, found, strict=True):
        ids = prompt.tolist()
        while len(ids) < len(prompt) + most and (len(ids) == len(prompt) or ids[-1] != END):
            ids.append(int(logits_of(model, ids).argmax()))
        assert response.tolist() == ids[len(prompt) :]
        lengths.add(len(response))
    assert lengths


@pytest.mark.parametrize("name", MODELS)
def test_a_response_ends_with_the_first_end_token(name: str) -> None:
    model = made(name)
    never = VOCABULARY + 1
    whole = respond(model, PROMPTS, Sampling(9, temperature=0), end=never, seed=0)
    end = int(whole[0][2])
    found = respond(model, PROMPTS, Sampling(9, temperature=0), end=end, seed=0)
    for cut, long in zip(found, whole, strict=True):
        places = (long == end).nonzero()[:1, 0].tolist()
        assert cut.tolist() == long[: places[0] + 1 if places else 9].tolist()
    assert len(found[0]) <= 3


def test_without_an_end_token_the_models_own_ends_a_response() -> None:
    assert end_token(made("llama")) == END
    assert end_token(made("own")) is None
    found, same = (
        respond(made("llama"), PROMPTS, Sampling(9, temperature=0), end=end, seed=0)
        for end in (None, END)
    )
    assert [r.tolist() for r in found] == [r.tolist() for r in same]
    whole = respond(made("own"), PROMPTS, Sampling(9, temperature=0), end=None, seed=0)
    assert {len(response) for response in whole} == {9}


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_determines_what_is_drawn(name: str) -> None:
    model, state = made(name), torch.get_rng_state()
    model.train()
    first = respond(model, PROMPTS, Sampling(6, top_p=0.9), end=END, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    torch.rand(7)
    again = respond(model, PROMPTS, Sampling(6, top_p=0.9), end=END, seed=5)
    other = respond(model, PROMPTS, Sampling(6, top_p=0.9), end=END, seed=6)
    assert [r.tolist() for r in first] == [r.tolist() for r in again]
    assert [r.tolist() for r in first] != [r.tolist() for r in other]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampling", [Sampling(1, temperature=2.0), Sampling(1, top_p=0.8)])
def test_drawn_tokens_have_the_models_probabilities(name: str, sampling: Sampling) -> None:
    """With a temperature and a nucleus alike in transformers' `generate` and in our loop."""
    model, prompt = made(name), [5, 3, 2]
    count = 4000
    drawn = respond(model, [torch.tensor(prompt)] * count, sampling, end=END, seed=1)
    found = torch.bincount(torch.cat(drawn), minlength=VOCABULARY)
    p = torch.softmax(logits_of(model, prompt) / sampling.temperature, -1)
    falling, places = p.sort(descending=True)
    kept = torch.zeros_like(p)
    kept[places] = falling * (falling.cumsum(0) - falling < sampling.top_p)
    wanted = count * kept / kept.sum()
    assert (found[wanted == 0] == 0).all()
    common = wanted >= 5
    seen = [*found[common].tolist(), int(found[~common].sum())]
    expected = [*wanted[common].tolist(), float(wanted[~common].sum())]
    pairs = [(s, e) for s, e in zip(seen, expected, strict=True) if e > 0]
    assert len(pairs) > 2
    assert chisquare(*map(list, zip(*pairs, strict=True))).pvalue > 1e-3


def test_a_models_own_habits_do_not_matter() -> None:
    model = made("gpt2")
    plain = respond(model, PROMPTS, Sampling(9, temperature=0), end=END, seed=0)
    habits = model.generation_config
    habits.repetition_penalty, habits.no_repeat_ngram_size, habits.num_beams = 5.0, 1, 3
    found = respond(model, PROMPTS, Sampling(9, temperature=0), end=END, seed=0)
    assert [r.tolist() for r in found] == [r.tolist() for r in plain]


@pytest.mark.parametrize("prompts", [[], [torch.tensor([], dtype=torch.int64)]])
def test_an_empty_prompt_is_refused(prompts: list[Tensor]) -> None:
    with pytest.raises(InputError, match="an empty one, wanted one token at least"):
        respond(made("own"), prompts, Sampling(3), end=END, seed=0)
