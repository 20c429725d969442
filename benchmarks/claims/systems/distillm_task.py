"""A grammar whose sequences have exact probabilities, and two transformers that learn it.

The next token depends on the two before it: p(c | a, b) is one draw of a Dirichlet distribution for
each pair (a, b), evened out a little, and one of the tokens ends the sequence. A sequence's
probability is the product of its entries, so the two divergences between the sequences of a student
q and those of the grammar g are sums over tokens:

    data      KL(g || q) = E over y of g, sum over t of KL(g(. | y_<t) || q(. | y_<t))
    writing   KL(q || g) = E over y of q, sum over t of KL(q(. | y_<t) || g(. | y_<t))

The expectation is over sequences that are drawn, the divergence of each token is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opdf_compile.distill.generation import Sampling, respond

TOKENS, END, PROMPT, LONGEST = 16, 0, 3, 16
GRAMMAR, TRAIN = 0, 1024
_SHARP, _EVEN, _ENDS = 0.25, 1e-3, 0.06
# Width, blocks: 1.0 M and 0.2 M parameters.
TEACHER, STUDENT = (128, 5), (64, 4)


@dataclass(frozen=True)
class Grammar:
    """The table p(c | a, b).

    Attributes:
        table: ``(a, b, c)``, float64.
    """

    table: Tensor

    @classmethod
    def drawn(cls, seed: int) -> Grammar:
        """One grammar of many."""
        generator = torch.Generator().manual_seed(seed)
        gamma = torch.distributions.Gamma(_SHARP, 1.0)
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(1 << 30, (), generator=generator)))
            raw = gamma.sample((TOKENS, TOKENS, TOKENS)).double()
        raw[..., END] = 0
        table = (1 - _EVEN) * raw / raw.sum(-1, keepdim=True) + _EVEN / (TOKENS - 1)
        table = (1 - _ENDS) * table
        table[..., END] = _ENDS
        return cls(table / table.sum(-1, keepdim=True))

    def prompts(self, count: int, generator: torch.Generator) -> Tensor:
        """``(count, PROMPT)`` tokens, none of which ends a sequence."""
        return torch.randint(1, TOKENS, (count, PROMPT), generator=generator)

    def sequences(self, count: int, seed: int) -> list[dict[str, list[int]]]:
        """Prompts and responses, of LONGEST tokens at most."""
        generator = torch.Generator().manual_seed(seed)
        ids = self.prompts(count, generator)
        for _ in range(LONGEST):
            p = self.table[ids[:, -2], ids[:, -1]]
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], 1)
        found = []
        for row in ids.tolist():
            response = row[PROMPT:]
            stop = response.index(END) + 1 if END in response else LONGEST
            found.append({"prompt": row[:PROMPT], "response": response[:stop]})
        return found

    def logs(self, ids: Tensor) -> Tensor:
        """The logarithms of the next token's probabilities, ``(b, t - 1, TOKENS)``."""
        return self.table.log()[ids[:, :-1], ids[:, 1:]]

    def divergences(self, model: nn.Module, seed: int, count: int) -> tuple[float, float]:
        """The two above of a model, on so many sequences each, in nats per sequence."""
        rows = [torch.tensor(r["prompt"] + r["response"]) for r in self.sequences(count, seed)]
        data = self._summed(model, rows, forward=True)
        prompts = list(self.prompts(count, torch.Generator().manual_seed(seed + 1)))
        written = respond(model, prompts, Sampling(LONGEST), end=END, seed=seed)
        own = [torch.cat(pair) for pair in zip(prompts, written, strict=True)]
        return data, self._summed(model, own, forward=False)

    @torch.no_grad()
    def _summed(self, model: nn.Module, rows: list[Tensor], *, forward: bool) -> float:
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        ours = model.eval()(ids)[:, 1:-1].double().log_softmax(-1)
        truth = self.logs(ids)[:, :-1]
        first, second = (truth, ours) if forward else (ours, truth)
        each = (first.exp() * (first - second)).sum(-1)
        # The token at place t + 2 is predicted at t here; those of the responses count.
        places = torch.arange(each.shape[1]) + 2
        lengths = torch.tensor([len(row) for row in rows])
        counted = (places >= PROMPT) & (places < lengths[:, None])
        return float((each * counted).sum() / len(rows))


class Transformer(nn.Module):
    """A causal transformer of four heads, whose places are learned."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, width)
        self.places = nn.Embedding(PROMPT + LONGEST, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, TOKENS)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``(b, t)`` -> ``(b, t, TOKENS)``."""
        hidden = self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(b, t, width)`` -> the same."""
        batch, length, width = hidden.shape
        shape = batch, length, self.heads, width // self.heads
        query, key, value = (
            part.view(shape).transpose(1, 2) for part in self.mix(self.first(hidden)).chunk(3, -1)
        )
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(found.transpose(1, 2).reshape(batch, length, width))
        grown: Tensor = self.down(F.gelu(self.up(self.second(hidden))))
        return hidden + grown


def student() -> nn.Module:
    """0.2 M parameters."""
    return Transformer(*STUDENT)


def teacher() -> nn.Module:
    """1.0 M parameters."""
    return Transformer(*TEACHER)


def fitted(model: nn.Module, grammar: Grammar, steps: int, examples: int, seed: int) -> nn.Module:
    """A model after cross entropy on sequences of the grammar, at one cycle of the rate."""
    rows = grammar.sequences(examples, seed)
    ids = nn.utils.rnn.pad_sequence(
        [torch.tensor(row["prompt"] + row["response"]) for row in rows], batch_first=True
    )
    lengths = torch.tensor([PROMPT + len(row["response"]) for row in rows])
    labels = ids[:, 1:].masked_fill(torch.arange(1, ids.shape[1]) >= lengths[:, None], -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        places = torch.randint(len(ids), (64,), generator=generator)
        logits = model(ids[places, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), labels[places].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return model


def data() -> tuple[list[dict[str, list[int]]], ...]:
    """What the recipes learn from and validate on, of the grammar that all runs share."""
    grammar = Grammar.drawn(GRAMMAR)
    return grammar.sequences(TRAIN, 1), grammar.sequences(128, 2), grammar.sequences(8, 3)
