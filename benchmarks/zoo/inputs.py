"""Example inputs of the transformers architectures, read off the configuration that they have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.architecture import Architecture, Inputs

VOCABULARY = 99


def tokens(batch: int, length: int, low: int = 3) -> Tensor:
    """Token ids without the special ones."""
    return torch.randint(low, VOCABULARY, (batch, length))


def mask(batch: int, length: int) -> Tensor:
    """Ones, and some padding at the end of the last text of the batch."""
    made = torch.ones(batch, length, dtype=torch.int64)
    made[-1, length - 3 :] = 0
    return made


def text(architecture: Architecture, batch: int) -> Inputs:
    """Token ids."""
    return {"input_ids": tokens(batch, architecture.size)}


def masked_text(architecture: Architecture, batch: int) -> Inputs:
    """Token ids and which of them count."""
    length = architecture.size
    return {"input_ids": tokens(batch, length), "attention_mask": mask(batch, length)}


def documents(architecture: Architecture, batch: int) -> Inputs:
    """Text with the box of each token on its page."""
    corner = torch.randint(0, 60, (batch, architecture.size, 2))
    box = torch.cat([corner, corner + torch.randint(1, 60, corner.shape)], dim=-1)
    return {**masked_text(architecture, batch), "bbox": box}


def sequence_pair(architecture: Architecture, batch: int) -> Inputs:
    """A text, and the beginning of the text it becomes."""
    half = tokens(batch, architecture.size // 2)
    return {**masked_text(architecture, batch), "decoder_input_ids": half}


def spectrogram_and_text(architecture: Architecture, batch: int) -> Inputs:
    """Mel frequencies over time, and the beginning of the transcript."""
    bins = architecture.options["num_mel_bins"]
    sound = torch.randn(batch, bins, architecture.size)
    return {"input_features": sound, "decoder_input_ids": tokens(batch, 8)}


def waveform(architecture: Architecture, batch: int) -> Inputs:
    """Samples of a sound."""
    return {"input_values": torch.randn(batch, architecture.size)}


def spectrogram(architecture: Architecture, batch: int) -> Inputs:
    """Mel frequencies over time."""
    bins = architecture.options["num_mel_bins"]
    return {"input_values": torch.randn(batch, architecture.size, bins)}


def pictures(architecture: Architecture, batch: int) -> Inputs:
    """A batch of images as transformers takes it."""
    return {"pixel_values": torch.randn(batch, 3, architecture.size, architecture.size)}


def image_and_text(architecture: Architecture, batch: int) -> Inputs:
    """Images and their captions."""
    caption = tokens(batch, 8)
    # CLIP reads the embedding at the end-of-text token.
    caption[:, -1] = 2
    return {"input_ids": caption, **pictures(architecture, batch)}


def masked_image_and_text(architecture: Architecture, batch: int) -> Inputs:
    """Images and their captions with a mask."""
    return {**image_and_text(architecture, batch), "attention_mask": mask(batch, 8)}


def features(architecture: Architecture, batch: int) -> Inputs:
    """Vectors in place of tokens."""
    return {"inputs": torch.randn(batch, architecture.size, architecture.options["d_model"])}


def past_values(architecture: Architecture, batch: int) -> Inputs:
    """A series of several channels."""
    channels: Any = architecture.options["num_input_channels"]
    return {"past_values": torch.randn(batch, architecture.size, channels)}


def past_and_future(architecture: Architecture, batch: int) -> Inputs:
    """A series with the time of each value, and what follows it."""
    past = architecture.size
    ahead: int = architecture.options["prediction_length"]
    return {
        "past_values": torch.randn(batch, past),
        "past_time_features": torch.randn(batch, past, 1),
        "past_observed_mask": torch.ones(batch, past),
        "future_values": torch.randn(batch, ahead),
        "future_time_features": torch.randn(batch, ahead, 1),
    }
