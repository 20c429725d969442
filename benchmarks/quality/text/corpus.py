"""What the study on text reads: sentences, the teacher's answers, fresh students."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STUDENT_LAYERS = 3
EVALUATION_BATCH = 256


@dataclass(frozen=True, eq=False)
class Corpus:
    """Sentences as ids, and what the teacher makes of them.

    Attributes:
        ids: By part (train, validation, test, documents), ``(sentences, length)`` int64.
        targets: The teacher's embeddings by part, ``(sentences, 384)`` float32, of norm 1.
        ratings: Similarity of pairs of documents as people see it; the upper triangle counts.
        config: Keyword arguments of the teacher's BertConfig.
        teacher: The teacher's state dict.
    """

    ids: dict[str, Tensor]
    targets: dict[str, Tensor]
    ratings: Tensor
    config: dict[str, Any]
    teacher: dict[str, Tensor]

    @property
    def pad(self) -> int:
        """The id that fills a row after its sentence."""
        return int(self.config["pad_token_id"])

    def student(self, start: str, seed: int) -> nn.Module:
        """Three layers over the teacher's embeddings.

        Args:
            start: "warm": the teacher's layers 2, 4 and 6; "random": as BERT starts.
            seed: Of the random layers.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _bert(self.config, STUDENT_LAYERS)
        kept = {k: v for k, v in self.teacher.items() if k.startswith("embeddings.")}
        if start == "warm":
            step = int(self.config["num_hidden_layers"]) // STUDENT_LAYERS
            for layer in range(STUDENT_LAYERS):
                source = f"encoder.layer.{(layer + 1) * step - 1}."
                kept.update(
                    {
                        f"encoder.layer.{layer}." + k.removeprefix(source): v
                        for k, v in self.teacher.items()
                        if k.startswith(source)
                    }
                )
        missing, unexpected = model.load_state_dict(kept, strict=False)
        wanted = () if start == "warm" else tuple(k for k in missing if "encoder" in k)
        if unexpected or tuple(missing) != wanted:
            raise SystemExit(f"the student lacks {missing[:3]} and does not know {unexpected[:3]}")
        return model.to(self.ratings.device)


def load(path: Path, device: str) -> Corpus:
    """Read the file of `prepare` and let the teacher embed everything."""
    file = np.load(path)
    ids = {
        part: torch.as_tensor(file[part], dtype=torch.int64, device=device)
        for part in ("train", "validation", "test", "documents")
    }
    config = json.loads(str(file["config"]))
    weights = {
        name.removeprefix("teacher/"): torch.as_tensor(file[name], dtype=torch.float32)
        for name in file.files
        if name.startswith("teacher/")
    }
    teacher = _bert(config, int(config["num_hidden_layers"]))
    teacher.load_state_dict(weights)
    teacher.to(device)
    pad = int(config["pad_token_id"])
    targets = {part: embed_all(teacher, rows, pad) for part, rows in ids.items()}
    ratings = torch.as_tensor(file["ratings"], dtype=torch.float64, device=device)
    return Corpus(ids, targets, ratings, config, weights)


def embed(model: nn.Module, ids: Tensor, pad: int) -> Tensor:
    """Mean over the tokens of a sentence, scaled to norm 1, as the teacher was trained.

    Args:
        model: A BertModel.
        ids: ``(b, length)``.
        pad: The id that counts as no token.

    Returns:
        ``(b, 384)``.
    """
    mask = ids != pad
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weight).sum(1) / weight.sum(1)
    return nn.functional.normalize(mean, dim=1)


@torch.no_grad()
def embed_all(model: nn.Module, ids: Tensor, pad: int) -> Tensor:
    """`embed` of all rows, in eval mode."""
    model.eval()
    return torch.cat([embed(model, rows, pad) for rows in torch.split(ids, EVALUATION_BATCH)])


def _bert(config: dict[str, Any], layers: int) -> nn.Module:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    from transformers import BertConfig, BertModel

    # Without dropout two runs of one seed differ by their method alone.
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    made = BertConfig(**{**config, **off, "num_hidden_layers": layers})
    model: nn.Module = BertModel(made, add_pooling_layer=False)
    return model
