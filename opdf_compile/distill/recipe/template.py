"""The recipe that `distill --init` writes: it runs as it is, and says what each part is for."""

from __future__ import annotations

from pathlib import Path

from opdf_compile.errors import ArtefactError
from opdf_compile.io.files import atomic_write

TEMPLATE = """\
# A recipe: what opdf-compile distill trains, on what, and how.
# It runs as it is, in about a minute on one core. docs/distill.md explains every key.

[student]                       # The network that ships.
model = "opdf_compile.distill.digit_networks:Student"    # or FILE.py:callable, timm:NAME, hf:DIR
# weights = "start.safetensors" # Start from trained weights.
# warm_start = true             # Start from the teacher's layers ...
# layer_map = "every-kth"       # ... which ones: "every-kth", "found", or a table.

[teacher]                       # The network that it learns from.
model = "opdf_compile.distill.digit_teacher:trained_teacher"
cache = true                    # Compute its outputs once; right where no example is augmented.

[data]
source = "digits"               # or mnist1d, FILE.npz, FILE.safetensors, FILE.py:callable, hf:DIR
batch = 64
# validation_share = 0.15       # Split off where the source is one part (digits brings three).
# test_share = 0.15

[plan]                          # How the student is over-parameterised while it trains.
cores = 3                       # or scale = 2.0, or overhead = 1.2
# enabled = false               # The plain student, to compare with.
# exclude = ["fc2.*"]

[[loss]]                        # As many as you like; they are added with their weights.
kind = "hinton"                 # or skew-kl, reverse-skew-kl, correlation, hidden, cosine
temperature = 4.0
weight = 0.9

[[loss]]
kind = "task"                   # The labels.
weight = 0.1

# [alignment]                   # Pull the cores towards the teacher's.
# weight = 1.0

[optimizer]
name = "AdamW"                  # Any class of torch.optim; its options go below.
lr = 0.02                       # Cores want another than weights: see opdf-compile advise.
weight_decay = 0.0
# betas = [0.9, 0.999]

[schedule]
kind = "cosine"                 # or linear, constant
warmup = 0.1                    # A share of the run, or a number of steps.

[training]
epochs = 15                     # or steps = 1000
seed = 0
precision = "fp32"              # or bf16, fp16, fp64
# accumulation = 4              # Batches per optimizer step.
# clip = 1.0
# early_stopping = 5            # Validations without a better one.
# ema = 0.99
# log_with = ["tensorboard"]

[verify]                        # The proof that the student that ships is as small and as fast.
budget = 15                     # Seconds for the latency measurement.
"""


def write_template(path: Path) -> None:
    """Write the template; an existing file stays.

    Raises:
        ArtefactError: There is such a file, or it cannot be written.
    """
    if path.exists():
        raise ArtefactError(
            f"{path} exists already and may be somebody's recipe; remove it, or name another file"
        )
    with atomic_write(path) as temporary:
        temporary.write_text(TEMPLATE, encoding="utf-8")
