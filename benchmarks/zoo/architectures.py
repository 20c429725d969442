"""All architectures by name, and which of them are exported."""

from __future__ import annotations

from zoo.architecture import Architecture
from zoo.timm_models import TIMM
from zoo.transformers_models import TRANSFORMERS

ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in (*TIMM, *TRANSFORMERS)}

# One of each kind of graph, the quickest of its kind: `make test` runs these.
QUICK = (
    "timm/resnext50_32x4d",
    "timm/convmixer_768_32",
    "timm/gmlp_ti16_224",
    "timm/vit_tiny_patch16_224",
    "timm/densenet121",
    "timm/poolformer_s12",
    "transformers/fnet",
    "transformers/albert",
    "transformers/gpt2",
    "transformers/squeezebert",
    "transformers/wav2vec2",
    "transformers/patchtst",
)


def exported(name: str, which: str) -> bool:
    """Whether an architecture is exported too.

    Args:
        name: The architecture.
        which: "all", "none", or "half": every second of each library's list.
    """
    if which != "half":
        return which == "all"
    library = ARCHITECTURES[name].library
    return [n for n, a in ARCHITECTURES.items() if a.library == library].index(name) % 2 == 0
