"""The models whose exports are compared, with the inputs of one batch.

resnet18, resnet50, mobilenetv3 (large), vit_tiny: timm's, images of 3 x 224 x 224
bert6      BERT-base cut to 6 layers, the shape of DistilBERT; 128 tokens
minilm     BERT of MiniLM-L6's shape: 6 layers, width 384, 12 heads, FFN 1536, vocabulary 30522
llama_small  8 layers of LLaMA: width 512, 8 heads, 4 of them for keys and values, FFN 1376,
             vocabulary 8000; 128 tokens
tiny       two small layers, for the tests
mobilenetv3_small, bert2, lstm   for tools.py alone: timm's, a BERT of two layers with its pooler
             (width 128, vocabulary 30522), two layers of LSTM with a head

All weights are random: what is compared does not depend on their values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGE, LENGTH = 224, 128

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        build: Makes it, with random weights.
        batch: Makes the inputs of so many samples, by name.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[int], Batch]

    def shapes(self, samples: int) -> dict[str, tuple[int, ...]]:
        """The shape of every input for so many samples."""
        return {name: tuple(value.shape) for name, value in self.batch(samples).items()}


def first_tensor(output: Any) -> Tensor:
    """The first tensor that a model returns."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if hasattr(output, "values") else output))
    return output


def _timm(name: str) -> Model:
    def build() -> nn.Module:
        from opdf_compile.io.torchvision_shim import prepare_torchvision

        prepare_torchvision()
        import timm

        made: nn.Module = timm.create_model(name, pretrained=False)
        return made

    return Model(build, lambda samples: {"x": torch.randn(samples, 3, IMAGE, IMAGE)})


def _text(build: Callable[[], nn.Module], vocabulary: int) -> Model:
    def batch(samples: int) -> Batch:
        return {
            "input_ids": torch.randint(0, vocabulary, (samples, LENGTH)),
            "attention_mask": torch.ones(samples, LENGTH, dtype=torch.int64),
        }

    return Model(build, batch)


def _bert(**shape: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = _transformers()
        config = transformers.BertConfig(num_hidden_layers=6, **shape)
        made: nn.Module = transformers.BertModel(config, add_pooling_layer=False)
        return made

    return build


def _bert2() -> nn.Module:
    transformers = _transformers()
    config = transformers.BertConfig(
        num_hidden_layers=2, hidden_size=128, num_attention_heads=2, intermediate_size=512
    )
    made: nn.Module = transformers.BertModel(config)
    return made


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        steps: Tensor = self.lstm(x)[0]
        scores: Tensor = self.head(steps[:, -1])
        return scores


def _llama() -> nn.Module:
    transformers = _transformers()
    config = transformers.LlamaConfig(
        num_hidden_layers=8,
        hidden_size=512,
        intermediate_size=1376,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=8000,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    made: nn.Module = transformers.LlamaForCausalLM(config)
    return made


def _transformers() -> Any:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    import transformers

    return transformers


def _tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48))


MODELS: dict[str, Model] = {
    "resnet18": _timm("resnet18"),
    "resnet50": _timm("resnet50"),
    "mobilenetv3": _timm("mobilenetv3_large_100"),
    "vit_tiny": _timm("vit_tiny_patch16_224"),
    "bert6": _text(_bert(), 30522),
    "minilm": _text(_bert(hidden_size=384, num_attention_heads=12, intermediate_size=1536), 30522),
    "llama_small": _text(_llama, 8000),
    "tiny": Model(_tiny, lambda samples: {"input": torch.randn(samples, 48)}),
}
NAMES = tuple(MODELS)
DEFAULT = tuple(name for name in NAMES if name != "tiny")
# Those whose files are given to other tools.
MODELS |= {
    "mobilenetv3_small": _timm("mobilenetv3_small_100"),
    "bert2": _text(_bert2, 30522),
    "lstm": Model(_Lstm, lambda samples: {"x": torch.randn(samples, 50, 40)}),
}
TRIED = ("resnet18", "mobilenetv3_small", "bert2", "lstm", "vit_tiny")
