"""LSTM, GRU and RNN. Their weights are read in another order than torch's, and left alone.

ONNX   LSTM i o f c     GRU z r h     W (directions, gates * hidden, in), B = [Wb, Rb]
torch  LSTM i f g o     GRU r z n
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opdf_compile.io.onnx_student.operator_table import Call, operator

_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_PLAIN = {
    "LSTM": [["Sigmoid", "Tanh", "Tanh"]],
    "GRU": [["Sigmoid", "Tanh"]],
    "RNN": [["Tanh"], ["Relu"]],
}


@operator("LSTM", "GRU", "RNN")
def recurrent(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> Any:
    """One layer in one or two directions, with torch's fused kernel."""
    activations = _require_plain(call, lengths, peepholes)
    flipped = call.get("layout", 0) == 1
    if flipped:
        x = x.transpose(0, 1)
        h0, c0 = (None if s is None else s.transpose(0, 1) for s in (h0, c0))
    both = w.shape[0]
    state = h0 if h0 is not None else x.new_zeros(both, x.shape[1], r.shape[-1])
    backward = call.get("direction", "forward") == "reverse"
    steps = x.flip(0) if backward else x
    weights = [t for d in range(both) for t in _weights(call, w, r, b, d)]
    options = (weights, b is not None, 1, 0.0, False, both == 2, False)
    if call.op == "LSTM":
        cell = c0 if c0 is not None else torch.zeros_like(state)
        out, *states = torch.lstm(steps, (state, cell), *options)
    else:
        rnn = torch.rnn_relu if activations[:1] == ["Relu"] else torch.rnn_tanh
        kernel: Any = torch.gru if call.op == "GRU" else rnn
        out, *states = kernel(steps, state, *options)
    out = out.flip(0) if backward else out
    # torch joins the directions in the last axis, ONNX gives them one of their own.
    every = out.reshape(*out.shape[:2], both, r.shape[-1]).transpose(1, 2)
    if flipped:
        every, states = every.permute(2, 0, 1, 3), [s.transpose(0, 1) for s in states]
    return every, *states


def _weights(call: Call, w: Tensor, r: Tensor, b: Tensor | None, direction: int) -> list[Tensor]:
    tensors = [w[direction], r[direction]]
    if b is not None:
        tensors.extend(b[direction].chunk(2))
    order = _ORDER[call.op]
    if len(order) == 1:
        return tensors
    gates = [tensor.chunk(len(order)) for tensor in tensors]
    return [torch.cat([parts[place] for place in order]) for parts in gates]


def _require_plain(call: Call, lengths: Any, peepholes: Any) -> list[str]:
    """Refuse what the fused kernels do not compute."""
    given = call.get("activations") or []
    count = 2 if call.get("direction") == "bidirectional" else 1
    plain = _PLAIN[call.op]
    odd = [
        what
        for what, found in (
            ("sequence lengths", lengths is not None),
            ("peepholes", peepholes is not None),
            ("a clip", call.get("clip") is not None),
            ("coupled gates", bool(call.get("input_forget", 0))),
            (f"the activations {given}", bool(given) and given not in [p * count for p in plain]),
            (
                "linear_before_reset=0",
                call.op == "GRU" and not call.get("linear_before_reset", 0),
            ),
        )
        if found
    ]
    if odd:
        raise call.refusal(f"has {odd[0]}, which torch's kernel does not compute")
    return list(given)
