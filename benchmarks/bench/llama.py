"""A LLaMA-shaped block: what one decoder layer of that family computes, without its embeddings.

x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)). No biases; queries and keys are rotated by
their positions, and several query heads share one head of keys and values.

Source: arXiv 2302.13971 (the layer), 2104.09864 (rotary positions), 2002.05202 (SwiGLU),
2305.13245 (grouped queries).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, hidden: int, ffn: int, *, heads: int, kv_heads: int) -> None:
        """Make the layer.

        Args:
            hidden: Width of the stream.
            ffn: Width inside the SwiGLU.
            heads: Query heads; `hidden` is a multiple of it.
            kv_heads: Heads of keys and values; `heads` is a multiple of it.
        """
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, hidden // heads
        self.attention_norm = nn.RMSNorm(hidden)
        self.q = nn.Linear(hidden, hidden, bias=False)
        self.k = nn.Linear(hidden, kv_heads * self.width, bias=False)
        self.v = nn.Linear(hidden, kv_heads * self.width, bias=False)
        self.o = nn.Linear(hidden, hidden, bias=False)
        self.ffn_norm = nn.RMSNorm(hidden)
        self.gate = nn.Linear(hidden, ffn, bias=False)
        self.up = nn.Linear(hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Stream to stream, shape (batch, positions, hidden)."""
        x = x + self._attention(self.attention_norm(x))
        inner = self.ffn_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(inner)) * self.up(inner))
        return out

    def _attention(self, x: Tensor) -> Tensor:
        batch, positions, hidden = x.shape
        q = self.q(x).view(batch, positions, self.heads, self.width).transpose(1, 2)
        k = self.k(x).view(batch, positions, self.kv_heads, self.width).transpose(1, 2)
        v = self.v(x).view(batch, positions, self.kv_heads, self.width).transpose(1, 2)
        shared = self.heads // self.kv_heads
        k, v = _rotate(k).repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        mixed = F.scaled_dot_product_attention(_rotate(q), k, v, is_causal=True)
        out: Tensor = self.o(mixed.transpose(1, 2).reshape(batch, positions, hidden))
        return out


def _rotate(x: Tensor) -> Tensor:
    """Rotary positions for (batch, heads, positions, width)."""
    positions, width = x.shape[-2:]
    pairs = torch.arange(0, width, 2, device=x.device, dtype=torch.float32)
    angles = torch.arange(positions, device=x.device)[:, None] / 10000.0 ** (pairs / width)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
