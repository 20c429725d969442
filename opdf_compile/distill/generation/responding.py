"""Responses of a model to prompts.

A model of transformers writes with its own `generate` and keeps its keys and values between tokens.
Every other module is called anew on all tokens so far, for each next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.generation.sampling import Sampling
from opdf_compile.errors import InputError
from opdf_compile.graph import phase_flags

# Of (token ids, attention mask), each (b, t), the logits (b, t, n).
Forward = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def respond(
    model: nn.Module,
    prompts: Sequence[Tensor],
    sampling: Sampling,
    *,
    end: int | None,
    seed: int,
    forward: Forward | None = None,
) -> list[Tensor]:
    """Let a causal language model answer, in eval mode.

    The seed alone determines what is drawn: the caller's random numbers are neither read nor moved.

    Args:
        model: Its modes are as before afterwards.
        prompts: ``(m,)`` int64 each, of one token at least.
        sampling: How tokens are chosen.
        end: The token that ends a response, and is its last; None takes the model's own, where it
            names one.
        seed: Where the random numbers start.
        forward: The model's logits; ``model(ids)`` by default. Not asked where the model has a
            `generate` of transformers.

    Returns:
        For each prompt ``(n,)`` int64 on the CPU, 1 <= n <= max_new_tokens.

    Raises:
        InputError: A prompt is empty.

    Example:
        >>> respond(model, [torch.tensor([5, 6])], Sampling(8), end=1, seed=0)  # doctest: +SKIP
        [tensor([9, 4, 1])]
    """
    if not prompts or min(map(len, prompts)) < 1:
        raise InputError(
            "respond got no prompt or an empty one, wanted one token at least in each; begin a "
            "prompt with a token that stands for its beginning"
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    end = end_token(model) if end is None else end
    placed = [prompt.to(device) for prompt in prompts]
    with phase_flags(model, "eval"):
        if _generates(model):
            return _with_transformers(model, placed, sampling, end, seed)
        return _anew(forward or (lambda ids, _mask: model(ids)), placed, sampling, end, seed)


def end_token(model: nn.Module) -> int | None:
    """The token that ends a text, where a model of transformers names one; of several the first."""
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        found = getattr(config, "eos_token_id", None)
        for end in found if isinstance(found, list | tuple) else (found,):
            if isinstance(end, int):
                return end
    return None


def _generates(model: nn.Module) -> bool:
    """Whether it is a language model of transformers."""
    asks: Any = getattr(model, "can_generate", None)
    return hasattr(model, "generation_config") and callable(asks) and bool(asks())


def _with_transformers(
    model: Any, prompts: Sequence[Tensor], sampling: Sampling, end: int | None, seed: int
) -> list[Tensor]:
    from transformers import GenerationConfig

    # Filled up on the left: the next token of every row then stands in one column.
    ids, mask = (
        nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_side="left")
        for columns in (list(prompts), [torch.ones_like(prompt) for prompt in prompts])
    )
    drawn = sampling.temperature > 0
    # What is not named here is taken from the model's own file, such as a penalty on repetitions.
    make_config: Any = GenerationConfig
    config = make_config(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=drawn,
        top_p=sampling.top_p if drawn else 1.0,
        temperature=sampling.temperature if drawn else 1.0,
        top_k=0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_beams=1,
        min_new_tokens=0,
        eos_token_id=end,
        pad_token_id=0 if end is None else end,
        use_cache=True,
    )
    devices = [ids.device] if ids.device.type == "cuda" else []
    # Its `generate` takes no generator, only torch's own.
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [_ended(row[ids.shape[1] :].cpu(), end) for row in written]


def _ended(response: Tensor, end: int | None) -> Tensor:
    """Up to the first end token, which belongs to it."""
    places = (response == end).nonzero()[:1, 0].tolist() if end is not None else []
    return response[: places[0] + 1] if places else response


def _anew(
    forward: Forward, prompts: Sequence[Tensor], sampling: Sampling, end: int | None, seed: int
) -> list[Tensor]:
    device = prompts[0].device
    generator = torch.Generator(device).manual_seed(seed)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    room = int(lengths.max()) + sampling.max_new_tokens
    ids = prompts[0].new_zeros(len(prompts), room)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    ends, columns = lengths.clone(), torch.arange(room, device=device)
    live = torch.arange(len(prompts), device=device)
    for _ in range(sampling.max_new_tokens):
        width = int(ends[live].max())
        mask = (columns[:width] < ends[live][:, None]).long()
        logits = forward(ids[live, :width], mask)
        last = logits[torch.arange(len(live), device=device), ends[live] - 1]
        chosen = sampling.next_tokens(last, generator)
        ids[live, ends[live]] = chosen
        ends[live] += 1
        live = live if end is None else live[chosen != end]
        if not len(live):
            break
    whole = zip(ids.cpu(), lengths.tolist(), ends.tolist(), strict=True)
    return [row[start:stop].clone() for row, start, stop in whole]
