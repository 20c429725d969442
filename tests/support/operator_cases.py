"""The table of operators: each row is a node that onnxruntime, onnx.reference and we must agree on.

`case(op, inputs, attributes, opset, constants)`; an input given as a list is a constant of int64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

_DRAW = np.random.default_rng(0)


def f(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Random floats; at least one shape axis of size 1 keeps broadcasting honest."""
    return _DRAW.uniform(low, high, shape).astype(np.float32)


def i(*items: int) -> np.ndarray:
    return np.array(items, dtype=np.int64)


def b(*shape: int) -> np.ndarray:
    return _DRAW.integers(0, 2, shape).astype(bool)


@dataclass(frozen=True)
class Case:
    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    outputs: int = 1
    # onnx.reference lacks the operator, or gives another answer than the specification's text.
    reference: bool = True

    @property
    def arrays(self) -> list[np.ndarray | None]:
        return [np.array(x, dtype=np.int64) if isinstance(x, list) else x for x in self.inputs]

    @property
    def constants(self) -> list[int]:
        """Lists are constants, and so is every float that stands in a `C`."""
        return [p for p, x in enumerate(self.inputs) if isinstance(x, list)]

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, np.shape(x))) for x in self.inputs if x is not None)
        options = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}@{self.opset}({shapes};{options})".replace(" ", "")


def case(op: str, *inputs: Any, opset: int = 18, **options: Any) -> Case:
    outputs, reference = options.pop("outputs", 1), options.pop("reference", True)
    return Case(op, inputs, options, opset, outputs, reference)


UNARY = (
    *("Abs", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Neg", "Round", "Sign", "Sin"),
    *("Sinh", "Tan", "Asinh", "Reciprocal", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign"),
    *("IsNaN", "Identity", "HardSwish", "Mish", "Selu", "Celu", "Elu", "LeakyRelu"),
    *("ThresholdedRelu", "HardSigmoid", "Shrink"),
)
ARITHMETIC = [
    *(case(op, f(2, 3, 4)) for op in UNARY),
    *(case(op, f(2, 3, low=0.1, high=0.9)) for op in ("Acos", "Asin", "Atanh", "Log", "Sqrt")),
    case("Acosh", f(2, 3, low=1.1)),
    case("Round", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)),
    *(case(op, f(2, 1, 4), f(3, 1)) for op in ("Add", "Sub", "Mul", "Div")),
    *(case(op, f(2, 3), f(3), opset=7) for op in ("Add", "Sub", "Mul", "Div")),
    case("Div", i(-7, 7, -8, 9), i(2, -2, 3, 4)),
    case("Mod", i(-7, 7, -8, 9), i(2, -2, 3, 4)),
    case("Mod", f(4), f(4), fmod=1),
    case("Pow", f(2, 3, low=0.1), f(2, 3)),
    case("Pow", f(2, 3), np.array(2.0, np.float32)),
    case("Pow", f(2, 3), i(3)),
    *(case(op, f(2, 3), f(3), f(2, 1)) for op in ("Max", "Min", "Sum", "Mean")),
    case("Clip", f(2, 3), np.array(-1, np.float32), np.array(0.5, np.float32)),
    case("Clip", f(2, 3), None, np.array(0.5, np.float32)),
    case("Clip", f(2, 3), opset=10, min=-1.0, max=0.5),
    case("Clip", f(2, 3), opset=9, max=0.5),
    case("MatMul", f(2, 3, 4), f(4, 5)),
    case("MatMul", f(2, 1, 3, 4), f(5, 4, 2)),
    case("MatMul", f(4), f(4, 5)),
    case("Gemm", f(3, 4), f(4, 5), f(5)),
    case("Gemm", f(4, 3), f(5, 4), f(3, 1), transA=1, transB=1, alpha=0.5, beta=2.0),
    case("Gemm", f(3, 4), f(5, 4), f(1), transB=1),
    case("Gemm", f(3, 4), f(5, 4), transB=1, alpha=0.25, opset=11),
    case("Einsum", f(2, 3, 4), f(4, 5), equation="bij, jk -> bik"),
    case("CumSum", f(2, 5), np.array(1, np.int64)),
    case("CumSum", f(2, 5), np.array(0, np.int64), reverse=1, exclusive=1),
    case("Gelu", f(2, 3), opset=20),
    case("Gelu", f(2, 3), opset=20, approximate="tanh"),
    case("PRelu", f(2, 3, 4), f(3, 1)),
    case("Elu", f(2, 3), alpha=0.5),
    case("LeakyRelu", f(2, 3), alpha=0.2),
    case("HardSigmoid", f(2, 3), alpha=0.3, beta=0.4),
    case("Shrink", f(2, 3), lambd=0.7, bias=0.2),
    *(case("Softmax", f(2, 3, 4), axis=a) for a in (0, 1, -1)),
    *(case("Softmax", f(2, 3, 4), axis=a, opset=11, reference=False) for a in (0, 1, 2)),
    case("Softmax", f(2, 3, 4), opset=11, reference=False),
    case("LogSoftmax", f(2, 3, 4)),
    case("LogSoftmax", f(2, 3, 4), opset=9, reference=False),
    case("Hardmax", f(2, 5)),
    case("Det", f(2, 3, 3)),
]
LOGIC = [
    *(case(op, b(2, 3), b(3)) for op in ("And", "Or", "Xor")),
    case("Not", b(2, 3)),
    *(case(op, f(2, 3), f(2, 3)) for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    case("Equal", i(1, 2, 3), i(1, 3, 3)),
    case("Where", b(2, 3), f(3), f(2, 1)),
    case("IsInf", np.array([np.inf, -np.inf, 1], np.float32)),
    case("IsInf", np.array([np.inf, -np.inf, 1], np.float32), detect_negative=0),
    *(case(op, i(12, 10), i(10, 6)) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    case("BitwiseNot", i(12, 10)),
]
NETWORK = [
    case("Conv", f(2, 3, 7, 8), f(4, 3, 3, 3), f(4)),
    case("Conv", f(2, 4, 9), f(6, 2, 3), group=2, strides=[2], dilations=[2], pads=[1, 2]),
    case("Conv", f(1, 2, 4, 5, 6), f(3, 2, 2, 2, 2), f(3), pads=[1, 0, 1, 1, 0, 1]),
    case("Conv", f(2, 3, 7, 8), f(3, 1, 3, 2), group=3, pads=[0, 1, 2, 0], strides=[2, 1]),
    *(
        case("Conv", f(1, 2, 7, 8), f(3, 2, 3, 4), auto_pad=how, strides=[2, 3])
        for how in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    case("Conv", f(1, 2, 7), f(3, 2, 4), auto_pad="SAME_LOWER"),
    case("ConvTranspose", f(2, 3, 5, 6), f(3, 4, 3, 3), f(4), strides=[2, 2], pads=[1, 1, 1, 1]),
    case(
        "ConvTranspose",
        f(2, 4, 5),
        f(4, 3, 3),
        group=2,
        strides=[2],
        pads=[0, 1],
        output_padding=[1],
        dilations=[2],
        reference=False,
    ),
    case(
        "ConvTranspose",
        f(1, 2, 4, 4),
        f(2, 3, 3, 3),
        strides=[2, 2],
        output_shape=[8, 8],
        reference=False,
    ),
    case("ConvTranspose", f(1, 2, 4, 5), f(2, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", f(1, 2, 4), f(2, 3, 2), strides=[2], output_padding=[1]),
    case("MaxPool", f(1, 2, 7, 8), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    case("MaxPool", f(1, 2, 7, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("MaxPool", f(1, 2, 9), kernel_shape=[3], dilations=[2]),
    case("MaxPool", f(1, 2, 7, 8), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("AveragePool", f(1, 2, 7, 8), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    case(
        "AveragePool",
        f(1, 2, 7, 8),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        count_include_pad=1,
        opset=19,
    ),
    case("AveragePool", f(1, 2, 8), kernel_shape=[3], strides=[2], ceil_mode=1, opset=19),
    case("AveragePool", f(1, 2, 9), kernel_shape=[2], dilations=[3], opset=19),
    case("LpPool", f(1, 2, 8), kernel_shape=[2], strides=[2], p=2),
    *(case(op, f(2, 3, 4, 5)) for op in ("GlobalAveragePool", "GlobalMaxPool")),
    case("GlobalLpPool", f(2, 3, 4, 5), p=2, reference=False),
    *(
        case(
            "BatchNormalization",
            f(2, 3, 4),
            f(3),
            f(3),
            f(3),
            f(3, low=0.1),
            epsilon=1e-3,
            opset=v,
            reference=v == 15,
        )
        for v in (7, 9, 15)
    ),
    case("InstanceNormalization", f(2, 3, 8), f(3), f(3)),
    case("LayerNormalization", f(2, 3, 8), f(8), f(8)),
    case("LayerNormalization", f(2, 3, 8), f(3, 8), axis=1, epsilon=1e-3),
    case("GroupNormalization", f(2, 4, 6), f(4), f(4), num_groups=2, opset=21),
    case("LRN", f(2, 6, 3, 3), size=3, alpha=0.1, beta=0.5, bias=2.0, reference=False),
    case("LpNormalization", f(2, 5), axis=1, p=2),
    case("MeanVarianceNormalization", f(2, 3, 4, 5)),
    case("Dropout", f(2, 3), opset=12),
    case("Dropout", f(2, 3), opset=13, outputs=2),
]
SHAPES = [
    case("Cast", f(2, 3), to=7),
    case("Cast", f(2, 3), to=10),
    case("CastLike", i(1, 2), f(1)),
    case("Reshape", f(2, 3, 4), [0, -1]),
    case("Reshape", f(2, 3, 4), [4, -1]),
    case("Reshape", f(0, 3), [3, 0], allowzero=1),
    *(case("Flatten", f(2, 3, 4), axis=a) for a in (0, 1, 2, -1)),
    case("Transpose", f(2, 3, 4)),
    case("Transpose", f(2, 3, 4), perm=[1, 2, 0]),
    case("Squeeze", f(1, 3, 1), [0]),
    case("Squeeze", f(1, 3, 1), opset=11, axes=[2]),
    case("Squeeze", f(1, 3, 1)),
    case("Unsqueeze", f(2, 3), [0, -1]),
    case("Unsqueeze", f(2, 3), opset=11, axes=[1, 3]),
    case("Concat", f(2, 3), f(2, 1), axis=-1),
    case("Split", f(2, 6), [2, 4], axis=1, outputs=2),
    case("Split", f(2, 6), axis=1, outputs=3, num_outputs=3),
    case("Split", f(2, 7), axis=1, outputs=3, num_outputs=3),
    case("Split", f(2, 6), axis=1, outputs=2, split=[1, 5], opset=11),
    case("Split", f(2, 6), axis=1, outputs=2, opset=11),
    case("Slice", f(4, 5), [1], [4], [1], [2]),
    case("Slice", f(4, 5), [-1], [-100], [0], [-1]),
    case("Slice", f(4, 5), [3, 4], [0, 1], [0, 1], [-1, -2]),
    case("Slice", f(4, 5), [0, -3], [9223372036854775807, -1]),
    case("Slice", f(4, 5), opset=9, starts=[1], ends=[3], axes=[1]),
    case("Expand", f(3, 1), [2, 1, 4]),
    case("Tile", f(2, 3), [2, 3]),
    case("Pad", f(2, 3), [1, 0, 2, 1], np.array(1.5, np.float32)),
    case("Pad", f(2, 3), [0, -1, 0, 1], reference=False),
    case("Pad", f(2, 3, 4), [0, 1, 2, 0, 1, 1], mode="reflect"),
    case("Pad", f(2, 3, 4), [1, 1, 2, 0, 1, 1], mode="edge"),
    case("Pad", f(2, 3, 4), [1, 2], None, [1], mode="edge"),
    case("Pad", f(2, 3), opset=10, pads=[1, 0, 0, 1], value=2.0, reference=False),
    case("Shape", f(2, 3, 4)),
    case("Shape", f(2, 3, 4), start=-2),
    case("Size", f(2, 3, 4)),
    case("ConstantOfShape", [2, 3]),
    case("Range", *(np.array(n, np.int64) for n in (1, 9, 3))),
    case("EyeLike", f(3, 4), k=1, dtype=1),
    case("Trilu", f(3, 4), upper=0),
    case("Trilu", f(2, 3, 4), np.array(1, np.int64)),
    case("DepthToSpace", f(1, 8, 2, 3), blocksize=2),
    case("DepthToSpace", f(1, 8, 2, 3), blocksize=2, mode="CRD"),
    case("SpaceToDepth", f(1, 2, 4, 6), blocksize=2),
    case("ReverseSequence", f(4, 3), i(1, 4, 2), time_axis=0, batch_axis=1),
]
INDEXING = [
    case("Gather", f(4, 3), i(0, -1, 2)),
    case("Gather", f(4, 3), [[0, 2], [1, -1]], axis=1),
    case("Gather", f(4, 3), np.array(-1, np.int64), axis=1),
    case("Gather", f(2, 4, 3), i(3, 1), axis=1),
    case("GatherElements", f(3, 3), np.array([[0, -1, 2], [2, 0, 0]]), axis=0),
    case("GatherND", f(2, 3, 4), np.array([[0, 1], [1, -1]])),
    case("GatherND", f(2, 3, 4), np.array([[1], [0]]), batch_dims=1),
    case("ScatterElements", f(3, 3), np.array([[1, 0, 2]]), f(1, 3)),
    case("ScatterElements", f(3, 3), np.array([[1, 0, 2]]), f(1, 3), axis=1, reduction="add"),
    case("ScatterND", f(4, 3), np.array([[1], [3]]), f(2, 3)),
    case("ScatterND", f(4, 3), np.array([[1], [1]]), f(2, 3), reduction="add"),
    case("OneHot", i(0, 2, -1), np.array(4, np.int64), np.array([0.5, 2.0], np.float32)),
    case("OneHot", i(0, 2, 1), np.array(3, np.int64), f(2), axis=0),
    case("NonZero", b(3, 4)),
    case("Compress", f(3, 4), np.array([True, False, True]), axis=1, reference=True),
    case(
        "GridSample",
        f(1, 2, 4, 5),
        f(1, 3, 3, 2, low=-1, high=1),
        mode="bilinear",
        opset=16,
        reference=False,
    ),
    case("ArgMax", f(3, 5), axis=1),
    case("ArgMin", f(3, 5), axis=0, keepdims=0),
    case("ArgMax", np.array([[1, 3, 3, 0]], np.float32), axis=1, select_last_index=1),
    case("TopK", f(3, 6), [2], outputs=2),
    case("TopK", f(3, 6), [3], outputs=2, axis=1, largest=0),
    case("TopK", f(3, 6), opset=9, outputs=2, k=2, reference=False),
    *(
        case(op, f(2, 3, 4, low=0.2), [1], opset=18)
        for op in (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax"),
            *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        )
    ),
    case("ReduceMean", f(2, 3, 4), opset=13, axes=[0, -1], keepdims=0),
    case("ReduceSum", f(2, 3, 4), opset=11, axes=[1]),
    case("ReduceSum", f(2, 3, 4), opset=13),
    case("ReduceMax", f(2, 3, 4), opset=11),
    case("ReduceProd", f(2, 3, 4), [0, 2], keepdims=0),
]
_SCALES = np.array([1, 1, 2.0, 1.5], np.float32)
RESIZE = [
    *(
        case(
            "Resize",
            f(1, 2, 4, 6),
            None,
            _SCALES,
            mode=mode,
            coordinate_transformation_mode=how,
            reference=False,
        )
        for mode in ("linear", "cubic", "nearest")
        for how in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    *(
        case(
            "Resize",
            f(1, 2, 4, 6),
            None,
            np.array([1, 1, 0.5, 2], np.float32),
            mode="nearest",
            nearest_mode=how,
            reference=False,
        )
        for how in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    case("Resize", f(1, 2, 4, 6), None, None, [1, 2, 7, 3], mode="linear", reference=False),
    case(
        "Resize",
        f(1, 2, 4, 6),
        np.array([1, 1, 2, 2], np.float32),
        opset=10,
        mode="linear",
        reference=False,
    ),
    case(
        "Upsample",
        f(1, 2, 3, 3),
        np.array([1, 1, 2, 3], np.float32),
        opset=9,
        mode="nearest",
        reference=False,
    ),
]
_SCALE, _ZERO = np.array(0.1, np.float32), np.array(3, np.uint8)
QUANTISED = [
    case("QuantizeLinear", f(3, 4), _SCALE, _ZERO),
    case("DequantizeLinear", np.array([0, 7, 255], np.uint8), _SCALE, _ZERO, opset=19),
    case(
        "DequantizeLinear",
        np.array([[0, 7], [3, -9]], np.int8),
        f(2, low=0.1),
        np.array([1, 2], np.int8),
        axis=0,
        opset=19,
    ),
    case("DynamicQuantizeLinear", f(3, 4), outputs=3),
    case(
        "MatMulInteger",
        np.array([[1, 2], [250, 4]], np.uint8),
        np.array([[1, 9], [3, 200]], np.uint8),
        _ZERO,
        np.array(5, np.uint8),
    ),
]


def _layer(gates: int, both: int = 1) -> tuple[np.ndarray, ...]:
    hidden = 4
    shapes = (
        (5, 2, 3),
        (both, gates * hidden, 3),
        (both, gates * hidden, hidden),
        (both, 2 * gates * hidden),
    )
    return tuple(f(*shape, low=-0.7, high=0.7) for shape in shapes)


RECURRENT = [
    case("LSTM", *_layer(4), hidden_size=4, outputs=3),
    case(
        "LSTM",
        *_layer(4, 2),
        None,
        f(2, 2, 4),
        f(2, 2, 4),
        hidden_size=4,
        outputs=3,
        direction="bidirectional",
        reference=False,
    ),
    case("LSTM", *_layer(4)[:3], hidden_size=4, outputs=3, direction="reverse", reference=False),
    case("GRU", *_layer(3), hidden_size=4, outputs=2, linear_before_reset=1),
    case("RNN", *_layer(1), hidden_size=4, outputs=2),
    case("RNN", *_layer(1), hidden_size=4, outputs=2, activations=["Relu"], reference=False),
]
CASES = [
    *ARITHMETIC,
    *LOGIC,
    *NETWORK,
    *SHAPES,
    *INDEXING,
    *RESIZE,
    *QUANTISED,
    *RECURRENT,
]
