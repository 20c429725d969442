"""The sections of a causal language model: what its examples are, and who writes the responses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from opdf_compile.distill.recipe.section import AtLeastZero, Count, Positive, Section, Text

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


class GenerationSection(Section):
    """Who writes the responses that are trained on; left out, all are those of the data."""

    policy: Literal["data", "on", "mixed", "adaptive", "paired"] = Field(
        description="data: nobody; on: the student, always; mixed: in a share of the batches; "
        "adaptive: more often as the validation loss rises, and from a buffer (DistiLLM); paired: "
        "data and student in each batch (DistiLLM-2).",
        examples=["adaptive"],
    )
    max_new_tokens: Count = Field(128, description="Tokens that the student writes at most.")
    top_p: Share = Field(
        1.0, description="It draws from the most probable tokens with this much probability."
    )
    temperature: AtLeastZero = Field(
        1.0, description="Of its drawing; 0 takes the most probable token."
    )
    share: Share = Field(0.5, description="Of mixed: the batches that the student writes.")
    buffer: Count = Field(1000, description="Of adaptive: responses that are kept.")
    tolerance: Positive = Field(
        0.1, description="Of adaptive: the rise of the validation loss (nats) that counts."
    )
    rise: Share = Field(0.1, description="Of adaptive: the share of batches that it then adds.")
