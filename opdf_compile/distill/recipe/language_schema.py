"""The sections of a causal language model: what its examples are, and who writes the responses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from opdf_compile.distill.recipe.section import Count, Section, Text

TokenId = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class LanguageSection(Section):
    """A causal language model on prompts and responses; left out, [data] gives tensors."""

    prompt: Text = Field("prompt", description="The field with the prompt: a text or token ids.")
    response: Text = Field(
        "response", description="The field with the response: a text or token ids."
    )
    learn: Literal["response", "all"] = Field(
        "response", description="Which tokens losses and metric count; all means the prompt, too."
    )
    max_length: Count = Field(
        512, description="Tokens of an example at most; a longer response is cut."
    )
    tokenizer: Text | None = Field(
        None,
        description="hf:DIR with the tokenizer of texts; the student's own folder by default.",
        examples=["hf:student"],
    )
    end: TokenId | None = Field(
        None,
        description="The token that ends a response; the tokenizer's or the student's by default.",
        examples=[2],
    )
