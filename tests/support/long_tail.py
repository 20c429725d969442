"""A table of small models, one for each way that a weight is held or read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

WIDTH = 8


@dataclass(frozen=True)
class Case:
    """A model and what the report must say of it.

    Attributes:
        name: What is special about it.
        build: Makes the model, in float64.
        shape: Of its one input; () for `tokens`.
        matches: key -> (row_axes, kernel, what it goes through).
        refusals: key -> a piece of the sentence.
        included: Whether the refusals' offers are planned too.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    matches: dict[str, tuple[int, int, tuple[str, ...]]]
    refusals: dict[str, str] = field(default_factory=dict)
    included: bool = False

    def model(self) -> nn.Module:
        """The model in float64, with all its parameters."""
        model = self.build()
        if any(isinstance(m, nn.modules.lazy.LazyModuleMixin) for m in model.modules()):
            model(self.inputs()[0].float())
        return model.double()

    def inputs(self) -> tuple[Tensor, ...]:
        if not self.shape:
            return (torch.arange(10).reshape(2, 5),)
        return (torch.randn(self.shape, dtype=torch.float64),)


class Calls(nn.Module):
    """Parameters that a function reads; `w` is the first."""

    def __init__(self, call: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in zip("wvu", shapes, strict=False):
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        self._names = "wvu"[: len(shapes)]
        self._call = call

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, *(getattr(self, name) for name in self._names))


def raw(
    name: str,
    call: Callable[..., Tensor],
    weight: tuple[int, ...],
    shape: tuple[int, ...] = (5, WIDTH),
    rows: int = 1,
    kernel: int = 1,
    through: tuple[str, ...] = (),
) -> Case:
    """One Parameter `w` that is a match."""
    found = {"w": (rows, kernel, through)}
    return Case(name, lambda: Calls(call, weight), shape, found)


def refused(
    name: str,
    call: Callable[..., Tensor],
    *weights: tuple[int, ...],
    why: dict[str, str],
    shape: tuple[int, ...] = (5, WIDTH),
) -> Case:
    """Parameters that are refused, beside a Linear that a plan can take."""

    def build() -> nn.Module:
        return nn.Sequential(Calls(call, *weights), nn.LazyLinear(4))

    found = {"1.weight": (1, 1, ())}
    return Case(name, build, shape, found, {f"0.{key}": text for key, text in why.items()})


def layer(
    name: str,
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    kernel: int,
    key: str = "weight",
    through: tuple[str, ...] = (),
    why: dict[str, str] | None = None,
) -> Case:
    """A layer whose one weight is a match."""
    return Case(name, build, shape, {key: (1, kernel, through)}, why or {})


SCALE = "is stretched over the weight that"


def normed(layer: nn.Module, **options: object) -> nn.Module:
    return parametrizations.weight_norm(layer, **options)  # type: ignore[arg-type]


class Standardised(nn.Conv2d):
    """A convolution of the weight less its mean, over its spread."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        spread = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / spread, self.bias)


class BatchNormed(nn.Conv2d):
    """The same by batch_norm of the reshaped weight, with a gain."""

    def __init__(self) -> None:
        super().__init__(4, 8, 3)
        self.gain = nn.Parameter(torch.ones(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, 8, -1)
        weight = F.batch_norm(flat, None, None, (self.gain * 2).view(-1), training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


class Masked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, 6)
        self.register_buffer("mask", torch.ones(6, WIDTH).tril())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Modulated(nn.Module):
    """A convolution whose weight the input scales, sample by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.style = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        style = self.style(x.mean((2, 3)))
        weight = self.weight * style[:, None, :, None, None]
        weight = weight * weight.pow(2).sum((2, 3, 4), keepdim=True).add(1e-8).rsqrt()
        batch = x.shape[0]
        out = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.reshape(-1, 4, 3, 3), groups=batch)
        return out.reshape(batch, 6, *out.shape[2:])


class Written(nn.Module):
    """A weight that is written into a kernel of zeros, block by block."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        full = torch.zeros(6, WIDTH, dtype=self.w.dtype)
        full[:4] = self.w
        return F.linear(x, full)


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, **options)  # type: ignore[arg-type]
        self._widths = self.inner.kdim, self.inner.vdim

    def forward(self, x: Tensor) -> Tensor:
        key, value = (x[..., :width] for width in self._widths)
        return self.inner(x, key, value)[0]


class Untracked(nn.Module):
    """A layer that runs without gradients, so that torch takes its fused kernels in eval."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(x)


class Packed(nn.Module):
    """One weight for q, k and v, taken apart in three ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3 * WIDTH, WIDTH))
        self._how = how

    def forward(self, x: Tensor) -> Tensor:
        if self._how == "slice":
            parts = [self.qkv[k * WIDTH : (k + 1) * WIDTH] for k in range(3)]
        else:
            parts = list(getattr(self.qkv, self._how)(3 if self._how == "chunk" else WIDTH))
        q, k, v = (F.linear(x, part) for part in parts)
        return q * k + v


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(WIDTH, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Cell(nn.Module):
    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = kind(WIDTH, 4)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x)
        return state[0] if isinstance(state, tuple) else state


class Tied(nn.Module):
    """An embedding and a head on one weight; the head scales it, as T5 does."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(30, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 30, bias=False)
        self.head.weight = self.table.weight
        self._scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.body(self.table(ids))
        return F.linear(hidden * self._scale, self.head.weight)


class Experts(nn.Module):
    """A mixture of experts on a stack of weights: dense, gathered, or one by one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.up = nn.Parameter(torch.randn(3, 6, WIDTH))
        self._how = how

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(-1)
        if self._how == "bmm":
            every = torch.bmm(x.expand(3, -1, -1), self.up.transpose(1, 2))
            return torch.einsum("ebo,be->bo", every, scores)
        if self._how == "gather":
            best = scores.argmax(-1)
            return torch.bmm(self.up[best], x[:, :, None])[..., 0]
        return sum(scores[:, e, None] * F.linear(x, self.up[e]) for e in range(3))


class Branches(nn.Module):
    """Two weights, each in one branch only, and one captured by both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(
            x.sum() > 0, lambda x: self.a(self.c(x)), lambda x: self.c(self.b(x)), (x,)
        )


class Chosen(nn.Module):
    """One of two weights, chosen by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(6, WIDTH)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cond(
            x.sum() > 0, lambda a, b: a.clone(), lambda a, b: b.clone(), (self.a, self.b)
        )
        return F.linear(x, weight)


class Scanned(nn.Module):
    """A stack of layers that a loop runs through."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(3, WIDTH, WIDTH) / 4)
        self.shared = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        def step(state: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            new = torch.tanh(self.shared(state) @ weight)
            return new, new.sum()

        return scan(step, x, self.stack)[0]


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.while_loop import while_loop

        return while_loop(
            lambda i, h: i < 3,
            lambda i, h: (i + 1, torch.tanh(self.inner(h))),
            (torch.zeros((), dtype=torch.int64), x),
        )[1]


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.map import map as map_over

        return map_over(lambda row: self.inner(row), x)


class Cast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            return self.inner(x)


class Checkpointed(Cast):
    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(self.inner, x, use_reentrant=False)


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.several = nn.ParameterList([torch.randn(WIDTH, WIDTH) for _ in range(2)])
        self.named = nn.ParameterDict({"out": torch.randn(3, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.several:
            x = x @ weight
        return F.linear(x, self.named["out"])


class Twice(nn.Module):
    """A module on inputs of two shapes, and a product shared with its alias."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).sum(0) + self.b(x[0])


class Adapted(nn.Module):
    """A frozen weight with a low-rank update: beside it, or merged into it."""

    def __init__(self, *, merged: bool) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(merged)
        self.down = nn.Parameter(torch.randn(2, WIDTH))
        self.up = nn.Parameter(torch.randn(WIDTH, 2))
        self._merged = merged

    def forward(self, x: Tensor) -> Tensor:
        if self._merged:
            return F.linear(x, self.base.weight + self.up @ self.down)
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


class Latents(nn.Module):
    """Learned queries: the input of a layer, no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(self.latents.expand(x.shape[0], -1, -1))
        return query @ self.key(x).mT


class Positions(nn.Module):
    """Parameters that activations are added to and multiplied with: no weights, and no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.gain = (nn.Parameter(torch.randn(5, WIDTH)) for _ in range(2))
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x * self.gain + self.position)
        return x @ x.mT


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


def symmetric() -> nn.Module:
    return parametrize.register_parametrization(nn.Linear(8, 8), "weight", Symmetric())


def _relative(x: Tensor, w: Tensor) -> Tensor:
    return x @ w[torch.tensor([0, 1, 1, 0])].T


LINEAR = [
    raw("linear", F.linear, (6, WIDTH)),
    raw("addmm", lambda x, w: torch.addmm(torch.zeros(6).double(), x, w), (WIDTH, 6)),
    raw("mv", lambda x, w: torch.mv(w, x[0]), (6, WIDTH)),
    raw("addmv", lambda x, w: torch.addmv(x[:, 0][:5], w, x[0]), (5, WIDTH)),
    raw("inner", torch.inner, (6, WIDTH)),
    raw("multi_dot", lambda x, w: torch.linalg.multi_dot([x, w, x.T]), (WIDTH, WIDTH)),
    raw("batch of one matrix", lambda x, w: torch.bmm(x[None], w), (1, WIDTH, 6), rows=2),
    raw("expanded over a batch", lambda x, w: torch.bmm(x[:, None], w.expand(5, -1, -1)), (8, 6)),
    raw("baddbmm", lambda x, w: torch.baddbmm(x[:, None, :6], x[:, None], w), (5, 8, 6), rows=2),
    raw("addbmm", lambda x, w: torch.addbmm(x[:1, :6], x[:, None], w), (5, 8, 6), rows=2),
    raw("stack by matmul", lambda x, w: x @ w, (3, WIDTH, 6), rows=2),
    raw("one of a stack", lambda x, w: F.linear(x, w[1]), (3, 6, WIDTH), rows=2),
    raw("einsum", lambda x, w: torch.einsum("bi,io->bo", x, w), (WIDTH, 6)),
    raw("einsum left", lambda x, w: torch.einsum("oi,bi->bo", w, x), (6, WIDTH)),
    raw("einsum implicit", lambda x, w: torch.einsum("bi,io", x, w), (WIDTH, 6)),
    raw("einsum heads out", lambda x, w: torch.einsum("bd,dhk->bhk", x, w), (WIDTH, 2, 3)),
    raw("einsum heads in", lambda x, w: torch.einsum("bd,hkd->bhk", x, w), (2, 3, WIDTH), rows=2),
    raw("einsum mixed", lambda x, w: torch.einsum("bd,hdk->bhk", x, w), (2, WIDTH, 3), rows=2),
    raw("einsum ellipsis", lambda x, w: torch.einsum("...i,oi->...o", x, w), (6, WIDTH)),
    raw(
        "einsum of heads",
        lambda x, w: torch.einsum("bhk,hkd->bd", x.view(-1, 2, 4), w),
        (2, 4, 3),
        rows=2,
    ),
    raw("tensordot", lambda x, w: torch.tensordot(x, w, dims=1), (WIDTH, 2, 3)),
    raw("reshaped", lambda x, w: x @ w.reshape(WIDTH, 6), (WIDTH, 2, 3)),
    raw("reshaped back", lambda x, w: F.linear(x, w.flatten(0, 1)), (2, 3, WIDTH), rows=2),
    raw("constant input", lambda x, w: x[:, :6] + torch.ones(5, 8).double() @ w, (WIDTH, 6)),
    raw(
        "times a constant",
        lambda x, w: F.linear(x, w @ torch.ones(4, WIDTH).double()),
        (6, 4),
        through=("matmul",),
    ),
    Case("written in place", Written, (5, WIDTH), {"w": (1, 1, ("copy",))}),
    Case(
        "concatenated",
        lambda: Calls(lambda x, w, v: F.linear(x, torch.cat([w, v])), (6, 8), (3, 8)),
        (5, WIDTH),
        {"w": (1, 1, ("cat",)), "v": (1, 1, ("cat",))},
    ),
    Case(
        "stacked",
        lambda: Calls(lambda x, w, v: x @ torch.stack([w, v]), (8, 6), (8, 6)),
        (5, WIDTH),
        {"w": (1, 1, ("stack",)), "v": (1, 1, ("stack",))},
    ),
    Case(
        "lists and dicts",
        Lists,
        (5, 8),
        dict.fromkeys(("several.0", "several.1", "named.out"), (1, 1, ())),
    ),
    Case("twice", Twice, (5, WIDTH), {"a.weight": (1, 1, ())}),
    *(
        Case(f"qkv by {how}", lambda how=how: Packed(how), (5, 8), {"qkv": (1, 1, ())})
        for how in ("slice", "chunk", "split")
    ),
]
CONVOLUTIONS = [
    layer("conv1d dilated", lambda: nn.Conv1d(4, 6, 3, dilation=2), (2, 4, 9), 3),
    layer("conv2d asymmetric", lambda: nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0)), (2, 4, 6, 6), 3),
    layer("conv2d depthwise", lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5), 9),
    layer("conv2d same", lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5), 9),
    layer("conv2d valid", lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 5, 5), 9),
    *(
        layer(
            f"conv2d {mode}",
            lambda mode=mode: nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode),
            (2, 4, 5, 5),
            9,
        )
        for mode in ("circular", "reflect", "replicate")
    ),
    layer("conv3d grouped", lambda: nn.Conv3d(4, 6, 2, groups=2), (2, 4, 3, 3, 3), 8),
    layer(
        "transposed 2d, output padding",
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1, groups=2),
        (2, 4, 4, 4),
        9,
    ),
    layer("transposed 3d", lambda: nn.ConvTranspose3d(4, 6, 2), (2, 4, 3, 3, 3), 8),
    raw(
        "conv_tbc",
        lambda x, w: torch.conv_tbc(x[:, None], w, torch.zeros(6).double()),
        (3, WIDTH, 6),
        rows=2,
    ),
    raw("F.conv1d", lambda x, w: F.conv1d(x[None], w), (6, 5, 3), kernel=3),
    raw("depthwise of a matrix", lambda x, w: F.conv1d(x[None], w[:, None], groups=5), (5, 3)),
]
COMPUTED = [
    layer("standardised", lambda: Standardised(4, 8, 3), (2, 4, 5, 5), 9, through=("sub", "div")),
    layer(
        "batch-normed",
        BatchNormed,
        (2, 4, 5, 5),
        9,
        through=("batch_norm",),
        why={"gain": SCALE},
    ),
    layer(
        "weight_norm",
        lambda: normed(nn.Conv1d(4, 6, 3)),
        (2, 4, 9),
        3,
        "parametrizations.weight.original1",
        ("weight_norm",),
        {"parametrizations.weight.original0": SCALE},
    ),
    layer(
        "weight_norm over columns",
        lambda: normed(nn.Linear(WIDTH, 6), dim=1),
        (5, WIDTH),
        1,
        "parametrizations.weight.original1",
        ("weight_norm",),
        {"parametrizations.weight.original0": SCALE},
    ),
    layer(
        "weight_norm, old",
        lambda: torch.nn.utils.weight_norm(nn.Linear(WIDTH, 6).double()),
        (5, WIDTH),
        1,
        "weight_v",
        ("weight_norm",),
        {"weight_g": SCALE},
    ),
    layer(
        "spectral_norm",
        lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, 6)),
        (5, WIDTH),
        1,
        "parametrizations.weight.original",
        ("div",),
    ),
    layer(
        "spectral_norm, old",
        lambda: torch.nn.utils.spectral_norm(nn.Linear(WIDTH, 6)),
        (5, WIDTH),
        1,
        "weight_orig",
        ("div",),
    ),
    layer("symmetric", symmetric, (5, 8), 1, "parametrizations.weight.original", ("triu", "add")),
    layer("masked", Masked, (5, WIDTH), 1, through=("mul",)),
    layer("modulated", Modulated, (2, 4, 5, 5), 9, through=("mul",)),
    Case(
        "orthogonal",
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 8)),
        (5, WIDTH),
        {"1.weight": (1, 1, ())},
        {"0.parametrizations.weight.original": "aten.matrix_exp, a function of the whole matrix"},
        included=True,
    ),
]
COMPUTED[9].matches["style.weight"] = (1, 1, ())
MODULES = [
    Case(
        "attention",
        Attention,
        (4, 3, 8),
        {f"inner.{k}": (1, 1, ()) for k in ("in_proj_weight", "out_proj.weight")},
    ),
    Case(
        "attention of three widths",
        lambda: Attention(kdim=4, vdim=6, batch_first=True, add_bias_kv=True),
        (4, 3, 8),
        {f"inner.{k}_proj_weight": (1, 1, ()) for k in "qkv"}
        | {"inner.out_proj.weight": (1, 1, ())},
    ),
    *(
        Case(
            f"transformer layer, {name}",
            lambda wrap=wrap: wrap(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)),
            (2, 3, 8),
            {
                f"{prefix}{k}": (1, 1, ())
                for k in (
                    "self_attn.in_proj_weight",
                    "self_attn.out_proj.weight",
                    "linear1.weight",
                    "linear2.weight",
                )
            },
        )
        for name, wrap, prefix in (
            ("plain", nn.Sequential, "0."),
            ("no gradients", Untracked, "inner."),
        )
    ),
    *(
        Case(
            kind.__name__,
            lambda kind=kind: Recurrent(kind),
            (2, 3, 8),
            {"head.weight": (1, 1, ())},
            {f"rnn.weight_{k}_l0": "recurrent weight: the fused kernel" for k in ("ih", "hh")},
        )
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
    ),
    *(
        Case(
            kind.__name__,
            lambda kind=kind: Cell(kind),
            (5, 8),
            {f"cell.weight_{k}": (1, 1, ()) for k in ("ih", "hh")},
        )
        for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    ),
    *(
        Case(
            f"tied head x {scale}",
            lambda scale=scale: Tied(scale),
            (),
            {"body.weight": (1, 1, ())},
            {"table.weight": "is tied to an embedding of 30 rows"},
            included=True,
        )
        for scale in (1.0, 0.25)
    ),
    *(
        Case(
            f"experts by {how}",
            lambda how=how: Experts(how),
            (5, 8),
            {"router.weight": (1, 1, ()), "up": (2, 1, through)},
        )
        for how, through in (("bmm", ()), ("gather", ("index",)), ("one by one", ()))
    ),
    Case(
        "low rank beside",
        lambda: Adapted(merged=False),
        (5, 8),
        {"down": (1, 1, ()), "up": (1, 1, ())},
        {"base.weight": "is frozen"},
    ),
    Case(
        "low rank merged",
        lambda: Adapted(merged=True),
        (5, 8),
        {"base.weight": (1, 1, ("add",))},
        {"down": "is multiplied with another weight", "up": "is multiplied with another weight"},
    ),
    Case(
        "learned queries",
        Latents,
        (2, 5, 8),
        {"query.weight": (1, 1, ()), "key.weight": (1, 1, ())},
        {"latents": "is an input of aten.linear.default, not its weight"},
    ),
    Case("positions", Positions, (2, 5, 8), {"inner.weight": (1, 1, ())}),
]
NESTED = [
    Case("cond", Branches, (5, 8), {f"{k}.weight": (1, 1, ()) for k in "abc"}),
    Case("cond that chooses", Chosen, (5, 8), {"a": (1, 1, ()), "b": (1, 1, ())}),
    Case("scan", Scanned, (5, 8), {"stack": (2, 1, ()), "shared.weight": (1, 1, ())}),
    Case("while_loop", Looped, (5, 8), {"inner.weight": (1, 1, ())}),
    Case("map", Mapped, (5, 8), {"inner.weight": (1, 1, ())}),
    Case("autocast", Cast, (5, 8), {"inner.weight": (1, 1, ())}),
    Case("checkpoint", Checkpointed, (5, 8), {"inner.weight": (1, 1, ())}),
]
REFUSED = [
    refused(
        "bilinear",
        lambda x, w: F.bilinear(x, x, w),
        (4, 8, 8),
        why={"w": "is a stack of bilinear forms"},
    ),
    refused(
        "a scale in an einsum",
        lambda x, w: torch.einsum("bi,bi->bi", x, w),
        (5, 8),
        why={"w": "enters aten.einsum.default without a sum"},
    ),
    refused(
        "two weights",
        lambda x, w, v: x @ (w @ v),
        (8, 2),
        (2, 8),
        why={"w": "is multiplied with another weight", "v": "is multiplied with another weight"},
    ),
    refused("a table", _relative, (2, 8), why={"w": "is a lookup table"}),
    refused("a row", lambda x, w: x @ w[:, None], (8,), why={"w": "has one axis"}),
]
CASES = [*LINEAR, *CONVOLUTIONS, *COMPUTED, *MODULES, *NESTED, *REFUSED]

# What `make test` runs: one of each kind. The others differ in the op, not in the way.
QUICK = frozenset(
    {
        *("linear", "one of a stack", "einsum mixed", "times a constant", "written in place"),
        "concatenated",
        *("transposed 2d, output padding", "conv_tbc", "standardised"),
        *("batch-normed", "weight_norm", "spectral_norm", "modulated", "orthogonal"),
        *("attention of three widths", "LSTMCell", "cond that chooses"),
        *("experts by gather", "low rank merged", "learned queries", "two weights"),
    }
)
