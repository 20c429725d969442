"""A model as it was before its forward ran.

torch.export runs the model's own forward, on fake tensors and symbolic sizes. What that forward
keeps beside its output - a cached grid, a counter, the features that a hook collects - would stay
behind in the caller's model, and the next export would read it. So everything that a forward can
reach from its module is noted first and put back afterwards:

    attributes      of every module, hidden ones in lists included, and of objects in attributes
    containers      dicts, lists, deques, sets, in place
    tensors         the numbers of those that are no Parameter
    hooks, methods  closures, the globals that they name, and functions with a cache among them
    classes         attributes of the modules' classes
    randomness      Python's, numpy's and torch's generators, and those in attributes
"""

from __future__ import annotations

import contextlib
import enum
import functools
import io
import logging
import operator
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PutBack = Callable[[], object]
# Longer containers are data: their own entries are kept, what is inside the entries is not.
_MOST_ENTRIES = 10_000
# An object in an attribute, and one inside it. Further away lie trainers, loaders and loggers,
# which go on by themselves while a model is traced.
_DEEPEST = 2
_NOT_ENTERED = (types.ModuleType, type, enum.Enum, logging.Logger, io.IOBase)
_Cached = type(functools.lru_cache(lambda: None))
# What a method keeps in its class or in a global.
_KEPT = (Tensor, np.ndarray, dict, list, deque, set, _Cached)
_CONTAINERS = (dict, list, deque, set)
_EMPTY = object()  # What is in a slot that nothing was put into yet.
_PLAIN = frozenset({int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device})


@contextlib.contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Put everything that a forward of the model changes back when the block ends.

    Args:
        model: Its Parameters stay the same objects; their numbers are not copied, since a forward
            that writes them is refused as one that cannot be trained.
    """
    with _undone(_Notes(model).undo):
        yield


@contextlib.contextmanager
def class_as_before(cls: type) -> Iterator[None]:
    """Put what its instances change in a class, or in one it derives from, back at the end.

    Args:
        cls: Its attributes, and the entries of containers among them, are noted.
    """
    undo: list[PutBack] = []
    for base in cls.__mro__:
        if not _is_of_torch(base):
            undo.append(_class_attributes(base))
            kept = (value for value in vars(base).values() if type(value) in _CONTAINERS)
            undo.extend(_container(value) for value in kept)
    with _undone(undo):
        yield


@contextlib.contextmanager
def _undone(undo: list[PutBack]) -> Iterator[None]:
    """Call all of these at the end, the last first, whichever of them fails."""
    try:
        yield
    finally:
        failed: list[BaseException] = []
        # By hand: an ExitStack makes two objects for each of thousands.
        for put_back in reversed(undo):
            try:
                put_back()
            except BaseException as error:  # An interrupt, too, leaves nothing half put back.
                failed.append(error)
        if failed:
            raise failed[0]


class _Notes:
    """What was found in a model, and how each piece of it is put back."""

    def __init__(self, model: nn.Module) -> None:
        self.undo: list[PutBack] = [*_global_randomness()]
        # Holding on to what was seen keeps its id from being given to something else.
        self._seen: dict[int, object] = {}
        self._slots: dict[type, tuple[str, ...]] = {}
        self._left: list[tuple[Any, int]] = [(model, 0)]
        while self._left:
            self._visit(*self._left.pop())

    def _visit(self, value: Any, depth: int) -> None:
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, _NOT_ENTERED):
            return
        if isinstance(value, _Cached):
            self.undo.append(_cache(value))
        elif isinstance(value, types.FunctionType):
            self._function(value, depth)
        elif isinstance(value, types.MethodType):
            self._more((value.__self__, value.__func__), depth)
        elif isinstance(value, functools.partial):
            self._more((value.func, value.args, value.keywords), depth)
        elif isinstance(value, tuple | frozenset):
            self._more(value, depth)
        else:
            self._object(value, depth)

    def _more(self, values: Any, depth: int) -> None:
        if len(values) <= _MOST_ENTRIES:
            self._left += [(value, depth) for value in values if type(value) not in _PLAIN]

    def _object(self, value: Any, depth: int) -> None:
        generator = _generator(value)
        if generator is not None:
            self.undo.append(generator)
            return
        if isinstance(value, Tensor):
            # A subclass that wraps others has no memory of its own; those are in its attributes.
            if type(value) is Tensor and value.layout is torch.strided and not value.is_meta:
                self.undo.append(_tensor(value))
        elif isinstance(value, np.ndarray):
            self.undo.append(_array(value))
        elif isinstance(value, dict | list | deque | set):
            self.undo.append(_container(value))
            self._more(dict.values(value) if isinstance(value, dict) else value, depth)
        inside = depth + (not isinstance(value, nn.Module | Tensor | dict | list | deque | set))
        if inside <= _DEEPEST:
            self._attributes(value, inside)
        if isinstance(value, nn.Module):
            for cls in type(value).__mro__:
                self._class(cls, depth)

    def _attributes(self, value: Any, depth: int) -> None:
        for name in self._slots_of(type(value)):
            entry = getattr(value, name, _EMPTY)
            self.undo.append(functools.partial(_set_slot, value, name, entry))
            if entry is not _EMPTY:
                self._more((entry,), depth)
        if type(value).__dictoffset__ == 0:
            return
        own = object.__getattribute__(value, "__dict__")
        self.undo.append(_container(own))
        self._more(own.values(), depth)

    def _slots_of(self, cls: type) -> tuple[str, ...]:
        if cls not in self._slots:
            self._slots[cls] = tuple(_slots(cls))
        return self._slots[cls]

    def _class(self, cls: type, depth: int) -> None:
        if id(cls) in self._seen or _is_of_torch(cls):
            return
        self._seen[id(cls)] = cls
        self.undo.append(_class_attributes(cls))
        for value in vars(cls).values():
            inner = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(inner, (types.FunctionType, *_KEPT)):
                self._left.append((inner, depth))

    def _function(self, function: types.FunctionType, depth: int) -> None:
        if _is_of_torch(function):
            return
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # A cell that nothing was put into yet.
                content = cell.cell_contents
                self.undo.append(functools.partial(setattr, cell, "cell_contents", content))
                self._left.append((content, depth))
        space, names = function.__globals__, _names(function.__code__)
        named = {name: space[name] for name in names if name in space}
        self.undo.append(functools.partial(space.update, named))
        self.undo.extend(functools.partial(space.pop, n, None) for n in names - named.keys())
        self._more([value for value in named.values() if isinstance(value, _KEPT)], depth)
        self._more(function.__defaults__ or (), depth)
        self._attributes(function, depth)


def _is_of_torch(thing: Any) -> bool:
    return (thing.__module__ or "").split(".")[0] in ("torch", "builtins")


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if not name.startswith("__"):
                yield name
            elif not name.endswith("__"):  # A private one; __dict__ and __weakref__ are none.
                yield f"_{base.__name__.lstrip('_')}{name}"


def _names(code: types.CodeType) -> set[str]:
    """The names that a function and those inside it look up outside themselves."""
    inner = (_names(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*inner)


def _container(value: Any) -> PutBack:
    before = _content(value)

    def put_back() -> None:
        now = _content(value)
        if len(now) == len(before) and all(map(operator.is_, now, before)):
            return
        if isinstance(value, dict):
            kind, count = _kind(value), len(before) // 2
            kind.clear(value)
            for key, entry in zip(before[:count], before[count:], strict=True):
                kind.__setitem__(value, key, entry)
        elif isinstance(value, list):
            list.__setitem__(value, slice(None), before)
        elif isinstance(value, deque):
            deque.clear(value)
            deque.extend(value, before)
        else:
            set.clear(value)
            set.update(value, before)

    return put_back


def _content(value: Any) -> list[Any]:
    """The entries of a container; of a dict its keys, and then its values."""
    if isinstance(value, dict):
        kind = _kind(value)
        return [*kind.keys(value), *kind.values(value)]
    return list(value)


def _kind(value: Any) -> Any:
    """The class to read a dict by: a subclass may guard its own methods.

    An OrderedDict keeps its order beside the dict.
    """
    return OrderedDict if isinstance(value, OrderedDict) else dict


def _class_attributes(cls: type) -> PutBack:
    def own() -> dict[str, Any]:
        return {n: v for n, v in vars(cls).items() if not n.startswith(("__", "_abc_"))}

    before = own()

    def put_back() -> None:
        now = own()
        for name in now.keys() - before.keys():
            delattr(cls, name)
        for name, value in before.items():
            if now.get(name, before) is not value:
                setattr(cls, name, value)

    return put_back


def _set_slot(value: Any, name: str, entry: Any) -> None:
    if entry is not _EMPTY:
        object.__setattr__(value, name, entry)
    elif hasattr(value, name):
        object.__delattr__(value, name)


def _tensor(tensor: Tensor) -> PutBack:
    # Whole storages: a view may lie on memory more than once, which cannot be written through it.
    memory = tensor.detach()
    storage: Any = memory.untyped_storage()
    saved = storage.clone()

    def put_back() -> None:
        # Compared, because what is written through `.data` moves no count; memory that is mapped
        # from a file, and was only read, stays mapped.
        if not torch.equal(_bytes(storage), _bytes(saved)):
            storage.copy_(saved)
        if _place(tensor) != _place(memory):  # Other memory was put in its place.
            tensor.data = memory

    return put_back


def _bytes(storage: Any) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _place(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride())


def _cache(cached: Any) -> PutBack:
    """An lru_cache cannot be written; one that made something new is emptied."""
    misses = cached.cache_info().misses

    def put_back() -> None:
        if cached.cache_info().misses != misses:
            cached.cache_clear()

    return put_back


def _array(array: np.ndarray[Any, Any]) -> PutBack:
    numbers = array.copy()

    def put_back() -> None:
        if array.flags.writeable:
            array[...] = numbers

    return put_back


def _generator(value: Any) -> PutBack | None:
    """How a random number generator gets its state back; None for anything else."""
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        source, state = value.bit_generator, value.bit_generator.state
        return lambda: setattr(source, "state", state)
    return None


def _global_randomness() -> Iterator[PutBack]:
    yield functools.partial(random.setstate, random.getstate())
    yield functools.partial(np.random.set_state, np.random.get_state())
    yield functools.partial(torch.set_rng_state, torch.get_rng_state())
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        yield functools.partial(cuda.set_rng_state_all, cuda.get_rng_state_all())
