"""The steps that a random module is made of. Each adds lines to a builder."""

from __future__ import annotations

from collections.abc import Callable

from fuzz_builder import Builder

# Primes, 1, powers of two and others: sizes that factorise well, badly and not at all.
SIZES = (4, 1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 16)


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def linear(b: Builder) -> None:
    name, value = b.value()
    out = b.pick(*SIZES)
    layer = b.module(f"nn.Linear({value.shape[-1]}, {out}, bias={b.chance()})")
    if b.chance():
        b.reusable[layer] = tuple(value.shape[1:])
    b.give(f"self.{layer}({name})")


def shared(b: Builder) -> None:
    """Call a module a second time, on a value of the shape that it takes."""
    for layer, shape in b.reusable.items():
        fitting = [n for n, v in b.values.items() if tuple(v.shape[1:]) == shape]
        if fitting:
            b.give(f"self.{layer}({b.pick(*fitting[::-1])})")
            return
    linear(b)


def tied(b: Builder) -> None:
    """Two Linear modules over one Parameter."""
    name, value = b.value()
    width = value.shape[-1]
    first = b.module(f"nn.Linear({width}, {width}, bias={b.chance()})")
    second = b.module(f"nn.Linear({width}, {width}, bias={b.chance()})")
    b.line_of_init(f"self.{second}.weight = self.{first}.weight")
    b.give(f"torch.tanh(self.{first}({name}))")
    other = b.pick(name, list(b.values)[-1])
    b.give(f"self.{second}({other})")


def raw(b: Builder) -> None:
    """A product with a Parameter that belongs to no layer."""
    name, value = b.value()
    width, out = value.shape[-1], b.pick(*SIZES)
    kind = b.pick("linear", "@", "matmul.t", "einsum", "addmm", "mm", "left")
    if kind in ("addmm", "mm", "left"):
        name, value = b.value(rank=2)
        width = value.shape[-1]
    w = b.weight(width, out) if kind in ("@", "addmm", "mm") else b.weight(out, width)
    b.give(
        {
            "linear": f"F.linear({name}, self.{w})",
            "@": f"{name} @ self.{w}",
            "matmul.t": f"torch.matmul({name}, self.{w}.t())",
            "einsum": f'torch.einsum("...i,oi->...o", {name}, self.{w})',
            "addmm": f"torch.addmm({name}[:, :1], {name}, self.{w})",
            "mm": f"torch.mm({name}, self.{w})",
            "left": f"torch.mm(self.{w}, {name}.t()).t()",
        }[kind]
    )


def packed(b: Builder) -> None:
    """One weight for query, key and value: its product or the weight itself is cut in three."""
    name, value = b.value()
    width = value.shape[-1]
    w = b.weight(3 * width, width)
    q, k, v = (b.fresh(stem) for stem in "qkv")
    if b.chance():
        b.line(f"{q}, {k}, {v} = (F.linear({name}, part) for part in self.{w}.chunk(3, 0))")
    else:
        b.line(f"{q}, {k}, {v} = F.linear({name}, self.{w}).chunk(3, -1)")
    b.give(f"{q} * torch.sigmoid({k}) + {v}")


def attention(b: Builder) -> None:
    name, value = b.value(rank=3)
    width = value.shape[-1]
    heads = b.pick(*divisors(width))
    bias = b.chance()
    layer = b.module(f"nn.MultiheadAttention({width}, {heads}, batch_first=True, bias={bias})")
    b.give(f"self.{layer}({name}, {name}, {name}, need_weights={b.chance()})[0]")


def convolution(b: Builder) -> None:
    rank = b.pick(2, 1, 3)
    name, value = b.value(rank=rank + 2)
    channels, least = value.shape[1], min(value.shape[2:])
    groups = b.pick(*divisors(channels))
    out = groups * b.pick(1, 2, 3)
    kernel = b.pick(*range(1, min(3, least) + 1))
    options = {"groups": groups, "bias": b.chance()}
    padding = b.pick(0, "same", "valid", 1)
    options["padding"] = padding
    if padding == "same":
        options["padding_mode"] = b.pick("zeros", "replicate", "circular")
    elif padding == 1 and kernel > 1 and least > 1:
        options["padding_mode"] = b.pick("zeros", "reflect" if rank < 3 else "replicate")
    if padding != "same":
        options["stride"] = b.pick(1, 2)
    if (kernel - 1) * 2 < least:
        options["dilation"] = b.pick(1, 2)
    written = ", ".join(f"{key}={option!r}" for key, option in options.items())
    size = b.pick(kernel, (kernel,) * (rank - 1) + (1,))
    layer = b.module(f"nn.Conv{rank}d({channels}, {out}, {size}, {written})")
    if b.chance():
        b.reusable[layer] = tuple(value.shape[1:])
    b.give(f"self.{layer}({name})")


def transposed(b: Builder) -> None:
    rank = b.pick(2, 1, 3)
    name, value = b.value(rank=rank + 2)
    channels = value.shape[1]
    groups = b.pick(*divisors(channels))
    out = groups * b.pick(1, 2)
    options = f"stride={b.pick(1, 2)}, groups={groups}, bias={b.chance()}"
    layer = b.module(f"nn.ConvTranspose{rank}d({channels}, {out}, {b.pick(1, 2)}, {options})")
    b.give(f"self.{layer}({name})")


def raw_convolution(b: Builder) -> None:
    rank = b.pick(1, 2, 3)
    name, value = b.value(rank=rank + 2)
    w = b.weight(b.pick(*SIZES), value.shape[1], *(1,) * rank)
    b.give(f"F.conv{rank}d({name}, self.{w})")


def depthwise(b: Builder) -> None:
    name, value = b.value(rank=4)
    channels = value.shape[1]
    layer = b.module(f"nn.Conv2d({channels}, {channels}, 3, padding=1, groups={channels})")
    b.give(f"self.{layer}({name})")


def normed(b: Builder) -> None:
    """A weight that is computed from two others."""
    name, value = b.value()
    layer = b.module(f"weight_norm(nn.Linear({value.shape[-1]}, {b.pick(*SIZES)}))")
    b.give(f"self.{layer}({name})")


def frozen(b: Builder) -> None:
    name, value = b.value()
    layer = b.module(f"nn.Linear({value.shape[-1]}, {b.pick(*SIZES)})")
    b.line_of_init(f"self.{layer}.weight.requires_grad_(False)")
    b.give(f"self.{layer}({name})")


def batch_norm(b: Builder) -> None:
    name, value = b.value(least=2)
    rank = max(value.ndim - 2, 1)
    layer = b.module(f"nn.BatchNorm{rank}d({value.shape[1]}, affine={b.chance()})", "norm")
    if b.chance():
        b.line_of_init(f"self.{layer}.eval()")
    b.give(f"self.{layer}({name})")


def other_norm(b: Builder) -> None:
    name, value = b.value()
    if value.ndim > 2 and b.chance():
        groups = b.pick(*divisors(value.shape[1]))
        layer = b.module(f"nn.GroupNorm({groups}, {value.shape[1]})", "norm")
    else:
        layer = b.module(f"nn.LayerNorm({value.shape[-1]})", "norm")
    b.give(f"self.{layer}({name})")


def pointwise(b: Builder) -> None:
    name, _value = b.value()
    function = b.pick("torch.relu", "torch.tanh", "F.gelu", "torch.sigmoid")
    b.give(f"{function}({name})")


def dropout(b: Builder) -> None:
    name, _value = b.value()
    layer = b.module(f"nn.Dropout({b.pick(0.5, 0.0)})", "drop")
    if b.chance():
        b.line_of_init(f"self.{layer}.eval()")
    b.give(f"self.{layer}({name})")


def residual(b: Builder) -> None:
    name, value = b.value()
    fitting = [n for n, v in b.values.items() if v.shape == value.shape]
    b.give(f"{name} + {b.pick(*fitting)}")


def concatenation(b: Builder) -> None:
    name, value = b.value()
    fitting = [n for n, v in b.values.items() if v.shape[:-1] == value.shape[:-1]]
    made = b.give(f"torch.cat([{name}, {b.pick(*fitting)}], -1)")
    if b.values[made].shape[-1] > 24:
        b.give(f"{made}[..., :16]")


def move_axes(b: Builder) -> None:
    """Sequences become one-dimensional images and back."""
    name, _value = b.value(least=3)
    b.give(f"{name}.transpose(1, -1)")


def average(b: Builder) -> None:
    name, _value = b.value(least=3)
    b.give(f"{name}.mean(-1)")


def empty(b: Builder) -> None:
    """A layer without any entry: there is nothing to factorise."""
    name, value = b.value()
    layer = b.module(f"nn.Linear({value.shape[-1]}, 0)")
    b.give(f"torch.cat([{name}, self.{layer}({name})], -1)")


def unused(b: Builder) -> None:
    b.module(f"nn.Linear({b.pick(*SIZES)}, {b.pick(*SIZES)})", "idle")


STEPS: tuple[Callable[[Builder], None], ...] = (
    linear,
    convolution,
    pointwise,
    raw,
    tied,
    shared,
    packed,
    attention,
    transposed,
    raw_convolution,
    depthwise,
    normed,
    frozen,
    batch_norm,
    other_norm,
    dropout,
    residual,
    concatenation,
    move_axes,
    average,
    empty,
    unused,
)
