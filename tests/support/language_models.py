"""Small causal language models, their recipes, and pairs of prompts and responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opdf_compile.io import prepare_torchvision

VOCABULARY, END = 23, 1

CODE = """
from language_models import Causal, certain, pairs

def student(): return Causal(16, 1)
def shaky(): return Causal(16, 1, drop=0.2)
def teacher(): return certain(Causal(24, 2))
def data(): return pairs(40, 0), pairs(12, 1), pairs(12, 2)
"""

RECIPE = """
[student]
model = "code.py:{student}"
[teacher]
model = "code.py:teacher"
{teacher}
[data]
source = "code.py:data"
batch = {batch}
[language]
end = 1
{language}
{generation}
[plan]
{plan}
{losses}
[optimizer]
lr = 0.01
[training]
{training}
[export]
enabled = false
"""

SKEW = '[[loss]]\nkind = "skew-kl"\n'
USUAL = {
    "student": "student",
    "teacher": "",
    "batch": "8",
    "language": "",
    "generation": "",
    "plan": "enabled = false",
    "losses": SKEW,
    "training": "epochs = 2",
}


def written(folder: Path, **values: str) -> Path:
    """A recipe of these models in a folder, with some values in place of the usual ones."""
    (folder / "code.py").write_text(CODE, encoding="utf-8")
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(**{**USUAL, **values}), encoding="utf-8")
    return file


class Causal(nn.Module):
    """A causal transformer that knows no padding: it has no attention mask."""

    def __init__(self, width: int, depth: int, drop: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(32, width)
        self.blocks = nn.ModuleList(_Block(width, drop) for _ in range(depth))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``(b, t)`` ids -> ``(b, t, VOCABULARY)`` logits."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.tokens(input_ids) + self.places(places)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


def certain(model: nn.Module, times: float = 3.0) -> nn.Module:
    """The model with larger weights: sure of what the data do not say.

    A student of it is worse and worse on the data.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(times)
    return model


class _Block(nn.Module):
    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(drop)

    def forward(self, hidden: Tensor) -> Tensor:
        """One head of attention."""
        query, key, value = self.mix(self.norm(hidden)).chunk(3, -1)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return hidden + self.drop(self.out(found))


def pairs(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Prompts of 2 to 4 tokens and responses of 2 to 6, each of which ends."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (), generator=generator))
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    return [{"prompt": ids(2, 4), "response": [*ids(1, 5), END]} for _ in range(count)]


def gpt2(width: int = 16, **more: Any) -> nn.Module:
    """A GPT-2 of transformers."""
    prepare_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=width,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=END,
        **more,
    )
    return GPT2LMHeadModel(config)


def llama(width: int = 16, **more: Any) -> nn.Module:
    """A Llama of transformers, with fewer key heads than query heads."""
    prepare_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=END,
        **more,
    )
    return LlamaForCausalLM(config)


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of single letters, with transformers' own files: "</s>" ends a text."""
    prepare_torchvision()
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<s>", "</s>", "<unk>", *"abcdefghij "]
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    whole.save_pretrained(folder)


def write_lines(file: Path, rows: list[Any]) -> None:
    """A file with one JSON value a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
