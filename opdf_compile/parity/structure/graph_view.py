"""An ONNX model as linked objects: nodes, values, and the scopes that own them.

Names are resolved once, as the ONNX specification scopes them: a subgraph sees the names of the
graphs around it, a local function sees only its own. After that a value is an object and names
serve messages alone. Constant nodes become constants, like initialisers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opdf_compile.artefacts import plain_domain
from opdf_compile.errors import ArtefactError
from opdf_compile.parity.structure.canonical import Constant, explicit_attributes

if TYPE_CHECKING:
    import onnx

FunctionKey = tuple[str, str, str]


@dataclass(eq=False, slots=True)
class Value:
    """One value of a graph.

    Exactly one of `node`, `constant` and `scope` says where it comes from: an output of a node, a
    constant, an input of a scope (which may have a constant as its default). None of them: the
    value is absent, an optional input that was left out.
    """

    name: str
    index: int = 0
    node: Node | None = None
    scope: Scope | None = None
    constant: Constant | None = None
    readers: list[tuple[Node, int]] = field(default_factory=list)
    output_of: list[Scope] = field(default_factory=list)

    def __str__(self) -> str:
        """What the value is, for a message."""
        if self.node is not None:
            place = f" output {self.index}" if self.index else ""
            return f"{self.node}{place}"
        if self.scope is not None:
            return f"input {self.name!r}"
        if self.constant is not None:
            kind = "parameter" if self.constant.parameter else "constant"
            return f"{kind} {self.name!r} {self.constant}"
        return "nothing"


@dataclass(eq=False, slots=True)
class Node:
    """One node; `inputs` are linked values, trailing absent ones dropped."""

    proto: onnx.NodeProto
    scope: Scope
    subgraphs: dict[str, tuple[Scope, ...]] = field(default_factory=dict)
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    function: Scope | None = None

    @property
    def label(self) -> str:
        """The node's name, or that of its first output where it has none."""
        return self.proto.name or next((o for o in self.proto.output if o), "?")

    @property
    def operator(self) -> tuple[str, str, str]:
        """Domain, operator and overload; a call of a local function has none of its own."""
        if self.function is not None:
            return ("", "a local function", "")
        return (plain_domain(self.proto.domain), self.proto.op_type, self.proto.overload)

    @property
    def present_outputs(self) -> tuple[bool, ...]:
        """Which outputs are asked for; trailing absent ones dropped."""
        names = list(self.proto.output)
        while names and not names[-1]:
            names.pop()
        return tuple(bool(name) for name in names)

    def attributes(self) -> dict[str, Hashable]:
        """Attributes with defaults made explicit, without subgraphs."""
        shapes = {i: v.constant.shape for i, v in enumerate(self.inputs) if v.constant}
        function = self.function.function if self.function else None
        return explicit_attributes(
            self.proto,
            self.scope.opsets,
            folder=self.scope.folder,
            weight_shapes=shapes,
            declared=function.attribute_proto if function else (),
        )

    def settings(self) -> dict[str, Hashable]:
        """Attributes that are not at their defaults."""
        shapes = {i: v.constant.shape for i, v in enumerate(self.inputs) if v.constant}
        bare = type(self.proto)(op_type=self.proto.op_type, domain=self.proto.domain)
        defaults = explicit_attributes(
            bare, self.scope.opsets, folder=self.scope.folder, weight_shapes=shapes
        )
        return {k: v for k, v in self.attributes().items() if defaults.get(k) != v}

    def __str__(self) -> str:
        """Operator and name, for a message."""
        return f"{self.proto.op_type} {self.label!r}"


@dataclass(eq=False)
class Scope:
    """A graph, a subgraph or the body of a local function."""

    name: str
    parent: Scope | None
    opsets: Mapping[str, int]
    folder: str
    function: onnx.FunctionProto | None = None
    values: dict[str, Value] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def define(self, value: Value) -> None:
        """Add a value under its name.

        Raises:
            ArtefactError: The name is taken.
        """
        if value.name in self.values:
            raise ArtefactError(
                f"the graph {self.name!r} defines {value.name!r} twice, so it is not valid ONNX; "
                "export it again"
            )
        self.values[value.name] = value

    def resolve(self, name: str) -> Value:
        """Find a name here or in a graph around.

        Raises:
            ArtefactError: Nothing produces it.
        """
        scope: Scope | None = self
        while scope is not None:
            value = scope.values.get(name)
            if value is not None:
                return value
            scope = scope.parent
        raise ArtefactError(
            f"the graph {self.name!r} reads {name!r}, which nothing produces, so it is not valid "
            "ONNX; export it again"
        )


@dataclass(eq=False)
class View:
    """A linked model."""

    model: onnx.ModelProto
    main: Scope
    scopes: list[Scope]
    functions: dict[FunctionKey, Scope]

    @property
    def nodes(self) -> Iterator[Node]:
        """Every node at every depth."""
        return (node for scope in self.scopes for node in scope.nodes)

    def find(self, label: str) -> Node | None:
        """The first node of that name (or first output)."""
        return next((node for node in self.nodes if node.label == label), None)
