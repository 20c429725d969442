"""The tokenizer that lies in an `hf:` folder."""

from __future__ import annotations

from typing import Any

from opdf_compile.errors import ArtefactError, error_line
from opdf_compile.io.models.from_hf import quiet
from opdf_compile.io.models.from_timm import zoo_package


def load_tokenizer(spec: str) -> Any:
    """Load a tokenizer of transformers from a local folder; no code of the folder runs.

    Args:
        spec: "hf:DIR".

    Returns:
        transformers' tokenizer.

    Raises:
        ArtefactError: The folder holds none.
        InputError: transformers is not installed.
    """
    transformers = zoo_package("transformers", spec)
    with quiet(transformers):
        try:
            return transformers.AutoTokenizer.from_pretrained(
                spec.removeprefix("hf:"), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # Readers of tokenizers raise every kind.
            raise ArtefactError(
                f"{spec}: no tokenizer can be loaded from it ({error_line(error, 150)}), wanted "
                "the files that its save_pretrained wrote; save it there, or give token ids"
            ) from error
