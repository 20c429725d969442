"""Which weights travel together, and in which order all ranks start the messages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import opdf_compile as opdf
from opdf_compile.training.hoisted.binding import Bound
from opdf_compile.training.hoisted.messages import FULL, LARGE, Flight, Message, schedule

KIB = 1024


class Sized(nn.Module):
    """Weights of so many KiB each, on the meta device: only their sizes matter."""

    def __init__(self, sizes: list[int], dtypes: dict[int, torch.dtype]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for place, size in enumerate(sizes):
            dtype = dtypes.get(place, torch.float32)
            width = size * KIB // dtype.itemsize // 16
            self.layers.append(nn.Linear(16, width, bias=False, device="meta", dtype=dtype))


def bounds_of(sizes: list[int], dtypes: dict[int, torch.dtype] | None = None) -> dict[str, Bound]:
    module = Sized(sizes, dtypes or {})
    plan = opdf.plan(module, cores=2)
    return {entry.key: Bound(module, entry) for entry in plan.entries}


def messages(
    sizes: list[int], owners: list[int], dtypes: dict[int, torch.dtype] | None = None
) -> list[tuple[int, str]]:
    """Sender and members, as in (0, "02")."""
    bounds = bounds_of(sizes, dtypes)
    made = schedule(dict(zip(bounds, owners, strict=True)), bounds)
    sent = [key for message in made for key in message.keys]
    assert sorted(sent) == sorted(bounds)
    return [(m.sender, "".join(key.split(".")[1] for key in m.keys)) for m in made]


CASES = {
    "small ones of a rank together": ([16, 16, 16, 16], [0, 1, 0, 1], [(0, "02"), (1, "13")]),
    "large ones alone": ([1024, 16, 2048, 16], [0, 0, 0, 0], [(0, "0"), (0, "13"), (0, "2")]),
    "by turns": ([1024] * 4, [0, 0, 1, 1], [(0, "0"), (1, "2"), (0, "1"), (1, "3")]),
    "a rank without weights": ([16, 1024], [2, 0], [(0, "1"), (2, "0")]),
}


@pytest.mark.parametrize(("sizes", "owners", "wanted"), CASES.values(), ids=CASES)
def test_schedule(sizes: list[int], owners: list[int], wanted: list[tuple[int, str]]) -> None:
    assert messages(sizes, owners) == wanted


def test_what_travels_together_has_one_dtype() -> None:
    dtypes = {1: torch.bfloat16, 3: torch.bfloat16}
    assert messages([16] * 4, [0] * 4, dtypes) == [(0, "02"), (0, "13")]


def test_a_message_is_never_over_full() -> None:
    bounds = bounds_of([1000] * 30)
    made = schedule(dict.fromkeys(bounds, 0), bounds)
    sizes = [sum(bounds[key].local().nbytes for key in message.keys) for message in made]
    assert max(sizes) <= FULL and len(made) == 2
    assert 1000 * KIB < LARGE


class Done:
    """A broadcast that is over at once."""

    def wait(self) -> None:
        """Nothing to wait for."""


def test_a_flight_writes_what_arrived() -> None:
    """The buffer of a receiver holds nothing yet; here the broadcast fills it."""
    student = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
    plan = opdf.plan(student, cores=2)
    bounds = [Bound(student, entry) for entry in plan.entries]
    wanted = [torch.randn(16, 8), torch.randn(8, 16)]
    seen: list[torch.Tensor] = []

    def send(buffer: torch.Tensor) -> Done:
        seen.append(buffer.clone())
        return Done()

    def receive(buffer: torch.Tensor) -> Done:
        buffer.copy_(seen[-1])
        return Done()

    sender = Flight(bounds, wanted, send)
    receiver = Flight(bounds, None, receive)
    assert not torch.equal(student[0].weight, wanted[0])
    for flight in (receiver, sender):
        flight.land()
        assert torch.equal(student[0].weight, wanted[0])
        assert torch.equal(student[1].weight, wanted[1])


def test_a_weight_alone_travels_in_its_own_memory() -> None:
    student = nn.Linear(8, 16)
    bound = Bound(student, opdf.plan(student, cores=2).entries[0])
    value = torch.randn(16, 8)
    places = []

    def send(buffer: torch.Tensor) -> Done:
        places.append(buffer.data_ptr())
        return Done()

    Flight([bound], [value], send)
    assert places == [student.weight.data_ptr()]
    assert torch.equal(student.weight, value)


def test_messages_are_values() -> None:
    assert Message(0, ("a", "b")) == Message(0, ("a", "b")) != Message(1, ("a", "b"))
