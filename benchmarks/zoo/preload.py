"""Imported once by the process that all workers are forked from: the slow imports of every worker.

Nothing here starts a thread, which a fork would not survive.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# First: it says with how many threads torch comes.
import bench.preload  # noqa: E402, F401
import torch  # noqa: E402

from opdf_compile.io.torchvision_shim import prepare_torchvision  # noqa: E402

prepare_torchvision()

import onnxscript  # noqa: E402, F401
import timm  # noqa: E402, F401
import transformers.modeling_utils  # noqa: E402, F401

import opdf_compile as opdf  # noqa: E402
import zoo.journey  # noqa: E402, F401

# The first trace of a process imports most of torch.export.
opdf.trace(torch.nn.Linear(2, 2), (torch.ones(2, 2),))
