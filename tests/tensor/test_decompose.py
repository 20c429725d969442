"""decompose: lossless, balanced, deterministic and trainable, for ordinary and awkward weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.tensor import composition as compose
from opdf_compile.tensor import decomposition as decompose
from opdf_compile.tensor.chain import Chain
from opdf_compile.tensor.modes import balanced_modes, chain_modes

Lossless = Callable[[Tensor, Sequence[Tensor]], None]

CHAINS = {
    "paper": Chain(*chain_modes(24, 40, 5)),
    "two cores": Chain(*chain_modes(24, 40, 2)),
    "balanced": Chain(*balanced_modes(24, 40, 3)),
    "square bond": Chain((4, 1, 6), (8, 1, 5)),
    "left-heavy": Chain((24, 1, 1), (10, 1, 4)),
    "right-heavy": Chain((1, 2, 12), (2, 1, 20)),
    "bond 1": Chain((24, 1, 1), (40, 1, 1)),
}


def weights() -> dict[str, Tensor]:
    """Weights of 24 x 40 by the trouble they make."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(24, 40, generator=generator)
    rows = torch.logspace(-30, 30, 24)[:, None]
    sparse = torch.where(torch.rand(24, 40, generator=generator) < 0.03, normal, 0.0)
    return {
        "normal": normal,
        "zero": torch.zeros(24, 40),
        "one entry": torch.zeros(24, 40).index_put(
            (torch.tensor(3), torch.tensor(7)), torch.tensor(2.0)
        ),
        "constant": torch.full((24, 40), 0.3),
        "identity": torch.eye(24, 40),
        "signs": normal.sign(),
        "rank 1": torch.outer(normal[:, 0], normal[0]),
        "bond rank 3": sum(
            (torch.kron((4 * normal[k : k + 6, :8]).round(), (4 * normal[k : k + 4, 8:13]).round()))
            for k in range(0, 18, 6)
        ),
        "nearly rank 1": torch.full((24, 40), 1.0) + 1e-6 * normal,
        "sparse": sparse,
        "1e-30": normal * 1e-30,
        "1e+30": normal * 1e30,
        "largest float32": torch.full((24, 40), torch.finfo(torch.float32).max),
        "smallest normal float32": torch.full((24, 40), torch.finfo(torch.float32).tiny),
        "mixed rows": normal * rows,
        "mixed entries": normal * rows[torch.randperm(24, generator=generator)] * rows[:1],
        "float64": normal.double(),
        "float64, 1e300": normal.double() * 1e300,
        "float64, 1e-300": normal.double() * 1e-300,
        "float16": normal.half(),
        "bfloat16": normal.bfloat16(),
        "float16, largest": torch.full((24, 40), 65504.0, dtype=torch.float16),
        "transposed view": normal.reshape(40, 24).mT,
    }


# Two chains of each weight in every run, and all chains of these.
EVERY_CHAIN = ("normal", "mixed entries", "nearly rank 1", "float16, largest")


@pytest.mark.parametrize(
    ("matrix", "chain"),
    [
        pytest.param(
            *(matrix, chain),
            id=f"{name}-{form}",
            marks=()
            if name in EVERY_CHAIN or form in ("paper", "right-heavy")
            else pytest.mark.slow,
        )
        for name, matrix in weights().items()
        for form, chain in CHAINS.items()
    ],
)
def test_lossless(matrix: Tensor, chain: Chain, lossless: Lossless) -> None:
    before = matrix.clone()
    cores = decompose.decompose(matrix, chain)
    assert tuple(tuple(core.shape) for core in cores) == chain.core_shapes
    half = matrix.dtype in (torch.float16, torch.bfloat16)
    for core in cores:
        assert core.dtype == (torch.float32 if half else matrix.dtype)
        assert core.is_contiguous()
        assert core.isfinite().all()
        assert not core.requires_grad
    lossless(matrix, cores)
    assert torch.equal(matrix, before)


def test_half_weights_come_back_bit_for_bit() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        matrix = weights()["normal"].to(dtype)
        cores = decompose.decompose(matrix, CHAINS["paper"])
        assert torch.equal(compose.compose([core.double() for core in cores]).to(dtype), matrix)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 13), (13, 1), (7, 11), (97, 97), (128, 2)])
@pytest.mark.parametrize("cores", [2, 3, 6])
def test_lossless_for_odd_sizes(sizes: tuple[int, int], cores: int, lossless: Lossless) -> None:
    matrix = torch.randn(sizes, generator=torch.Generator().manual_seed(3))
    for family in (chain_modes, balanced_modes):
        lossless(matrix, decompose.decompose(matrix, Chain(*family(*sizes, cores))))


def test_the_checker_rejects_a_lossy_answer(lossless: Lossless) -> None:
    matrix, chain = weights()["normal"], CHAINS["paper"]
    exact = decompose.decompose(matrix, chain)
    for wrong in (exact[0] * 1.01, exact[0].bfloat16().float(), exact[0] * float("nan")):
        with pytest.raises(AssertionError):
            lossless(matrix, (wrong, *exact[1:]))
    off = exact[-1].clone()
    off.view(-1)[0] += 0.01
    with pytest.raises(AssertionError, match="relative error"):
        lossless(matrix, (*exact[:-1], off))


modes = st.integers(2, 7).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(1, 3), min_size=n, max_size=n).map(tuple)] * 2)
)


@settings(max_examples=120, deadline=None)
@given(modes, st.integers(0, 5))
def test_one_factorisation_covers_every_full_bond_chain(
    pair: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    """Two cores carry the weight, the others are identities, and the weight is met exactly."""
    chain = Chain(*pair)
    if chain.rows * chain.cols > 20000:
        return
    matrix = torch.randn(
        chain.rows, chain.cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    cores = decompose.decompose(matrix, chain)
    assert tuple(tuple(core.shape) for core in cores) == chain.core_shapes
    torch.testing.assert_close(compose.compose(cores), matrix, rtol=1e-11, atol=1e-12)
    identities = [core for core in cores if is_identity(core)]
    assert len(identities) >= chain.cores - 2


def is_identity(core: Tensor) -> bool:
    size = max(core.shape[0], core.shape[3])
    return core.numel() == size**2 and torch.equal(
        core.reshape(size, size), torch.eye(size).to(core)
    )


@pytest.mark.parametrize("name", ["normal", "nearly rank 1", "float64"])
def test_gauge_is_balanced(name: str) -> None:
    """A^T A = B B^T = S, after one round and after more, and S is numpy's."""
    matrix, chain = weights()[name], CHAINS["paper"]
    cores = decompose.decompose(matrix, chain)
    bond = max(chain.bonds)
    left, right = cores[0].double().reshape(-1, bond), cores[-1].double().reshape(bond, -1)
    spectrum = torch.from_numpy(
        np.linalg.svd(arranged(matrix.double(), chain).numpy(), compute_uv=False)
    )
    limit = 1e-6 * float(spectrum[0])
    torch.testing.assert_close(left.mT @ left, torch.diag(spectrum), rtol=0, atol=limit)
    torch.testing.assert_close(right @ right.mT, torch.diag(spectrum), rtol=0, atol=limit)


def test_signs_are_fixed() -> None:
    matrix, chain = weights()["normal"], CHAINS["paper"]
    cores = decompose.decompose(matrix, chain)
    left = cores[0].reshape(-1, max(chain.bonds))
    largest = left.abs().argmax(0)
    assert (left.gather(0, largest[None]) > 0).all()
    opposite = decompose.decompose(-matrix, chain)
    torch.testing.assert_close(opposite[0], cores[0])
    torch.testing.assert_close(opposite[-1], -cores[-1])


@pytest.mark.parametrize("name", ["normal", "identity", "constant", "zero", "bond rank 3"])
def test_deterministic(name: str) -> None:
    first = decompose.decompose(weights()[name], CHAINS["paper"])
    for _ in range(3):
        again = decompose.decompose(weights()[name], CHAINS["paper"])
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


PROGRAM = """
import hashlib, torch
from opdf_compile.tensor.chain import Chain
from opdf_compile.tensor.decomposition import decompose
torch.set_num_threads(1)
matrix = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
digest = hashlib.sha256()
for weight in (matrix, matrix.sign(), torch.eye(96, 64), torch.zeros(96, 64)):
    for core in decompose(weight, Chain((12, 1, 8), (8, 1, 8))):
        digest.update(core.numpy().tobytes())
print(digest.hexdigest())
"""


# The quick ones are the tests of invariant 7.
@pytest.mark.slow
def test_deterministic_from_process_to_process() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout != ""


@pytest.mark.parametrize("name", ["zero", "bond rank 3", "constant", "one entry"])
def test_null_directions_can_be_trained(name: str) -> None:
    """Every direction of the bond gets a gradient, and gradient steps restore full rank."""
    matrix, chain = weights()[name], CHAINS["paper"]
    target = weights()["normal"]
    cores = [core.requires_grad_() for core in decompose.decompose(matrix, chain)]
    loss = (compose.compose(cores) - target).square().sum()
    gradient = torch.autograd.grad(loss, cores)[-1].reshape(max(chain.bonds), -1)
    assert (gradient.norm(dim=1) > 1e-6 * gradient.norm()).all()
    left = cores[0].detach().reshape(-1, max(chain.bonds))
    right = cores[-1].detach().reshape(max(chain.bonds), -1)
    null = right.norm(dim=1) == 0
    assert null.any()
    singular = torch.linalg.svdvals(arranged(matrix, chain))
    alive = singular[: int((~null).sum())]
    size = alive.square().mean().sqrt() if len(alive) else torch.tensor(1.0)
    wanted = size.sqrt().expand(int(null.sum()))
    torch.testing.assert_close(left[:, null].norm(dim=0), wanted, rtol=1e-5, atol=0)


def arranged(matrix: Tensor, chain: Chain) -> Tensor:
    (a, *_, b), (c, *_, d) = chain.out_modes, chain.in_modes
    return matrix.reshape(a, b, c, d).permute(0, 2, 1, 3).reshape(a * c, b * d)


def test_two_zero_factors_would_never_move() -> None:
    """The naive gauge, U 0^(1/2) and 0^(1/2) V^T, has no gradient: what the rule above prevents."""
    chain = CHAINS["paper"]
    cores = [torch.zeros(shape, requires_grad=True) for shape in chain.core_shapes]
    loss = (compose.compose(cores) - weights()["normal"]).square().sum()
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, cores))


def test_the_result_lives_on_the_weights_device_and_carries_no_graph() -> None:
    matrix = weights()["normal"].requires_grad_()
    cores = decompose.decompose(matrix, CHAINS["paper"], device="cpu")
    assert all(core.device == matrix.device and core.grad_fn is None for core in cores)


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (torch.zeros(40, 24), r"shape \(40, 24\) was found, \(24, 40\) is wanted"),
        (torch.full((24, 40), torch.nan), "960 of 960 entries are NaN or infinite"),
        (torch.eye(24, 40) / torch.tensor(0.0), "960 of 960"),
        (torch.zeros(24, 40).index_fill(1, torch.tensor([3]), torch.inf), "24 of 960"),
    ],
)
def test_wrong_weights_are_refused(matrix: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        decompose.decompose(matrix, CHAINS["paper"])


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="only float16, bfloat16, float32 and float64 decompose"):
        decompose.core_dtype(dtype)


def test_the_shape_checker_rejects_wrong_shapes() -> None:
    """The signatures are executed: a bond that differs between the factors does not pass."""
    with pytest.raises(jaxtyping.TypeCheckError):
        decompose._place(torch.zeros(3, 2), torch.zeros(4, 5), CHAINS["paper"], 1)
    with pytest.raises(jaxtyping.TypeCheckError):
        compose.compose([torch.zeros(2, 2)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", weights())
def test_lossless_through_a_cuda_device(name: str, lossless: Lossless) -> None:
    matrix = weights()[name]
    cores = decompose.decompose(matrix, CHAINS["paper"], device="cuda")
    assert all(core.device.type == "cpu" for core in cores)
    lossless(matrix, cores)
