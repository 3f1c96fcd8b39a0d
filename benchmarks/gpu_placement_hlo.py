"""How many kernels XLA launches for a computation, estimated from its compiled form for CPUs.

TensorFlow compiles for a GPU only where there is one. XLA's compiler for CPUs simplifies as the one
for GPUs does, and fuses elementwise operations into who reads them. Where the two differ:

- a long sum is a tree of `reduce-window` on a CPU, and one kernel on a GPU;
- a GPU's fusion may have several results (`merged`), a CPU's has one;
- what copies a product's operand into another layout, a GPU's library for products does not need.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

_NO_KERNEL = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota"),
}
"""Instructions that name or view what is there; a GPU's `iota` is part of what reads it."""

_BARRIERS = {
    *("dot", "custom-call", "convolution", "reduce", "reduce-window", "sort", "gather", "scatter"),
    *("while", "conditional", "dynamic-slice", "dynamic-update-slice", "select-and-scatter"),
    *("rng", "rng-bit-generator", "rng-get-and-update-state", "cholesky", "triangular-solve"),
}
"""What is a kernel of its own; all else is elementwise, or moves elements, and can be fused."""

_FUSION, _TREE = "fusion", "tree"

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) (?:\(.*)?\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\((?:[^()]|\([^)]*\))*\)|\S+) "
    r"(?P<kind>[\w\-]+)\((?P<operands>[^)]*)\)"
)
_CALLED = re.compile(r"(?:to_apply|calls|body)=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r"= s(?:32|64)\[\] constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: of its result.
      kind: of `_NO_KERNEL` or `_BARRIERS`, `_FUSION`, or `_TREE`: a part of a sum.
      elements: of its result; of a tuple, of the first.
      operands: names.
      line: as it is written.
    """

    name: str
    kind: str
    elements: int
    operands: tuple[str, ...]
    line: str


@dataclasses.dataclass(frozen=True)
class Launches:
    """Kernels of a computation.

    Attributes:
      alone: with fusions of one result each.
      merged: with those joined that XLA for GPUs may join.
      kinds: of `alone`, by what they are.
    """

    alone: int
    merged: int
    kinds: Mapping[str, int]


def launches(text: str) -> Launches:
    """Counts the kernels of a module; those in a loop as often as it runs.

    Args:
      text: its optimised HLO (`experimental_get_compiler_ir`, stage "optimized_hlo").

    Raises:
      ValueError: if it has no entry computation.
    """
    module = _parsed(text)
    if "ENTRY" not in module:
        raise ValueError(f"expected a module of HLO with an ENTRY, received {text[:200]!r}.")
    kinds: collections.Counter[str] = collections.Counter()
    _count(module, "ENTRY", 1, kinds)
    entry = module["ENTRY"]
    alone = sum(i.kind not in (*_NO_KERNEL, _TREE) for i in entry)
    saved = alone - len(merged(entry))
    return Launches(kinds.total(), kinds.total() - saved, dict(kinds))


def merged(entry: Sequence[Instruction]) -> set[frozenset[str]]:
    """Names of the instructions of a computation that may be one kernel on a GPU, by kernel.

    XLA for GPUs joins fusions of as many elements where one reads the other, or both read the same,
    and sums with what they are over (compiler/xla/service/gpu/multi_output_fusion.cc, 2.12). Here:
    all that have as many barriers on the longest way to them. A sum is a barrier to who reads it.
    """
    by_name = {instruction.name: instruction for instruction in entry}
    barriers: dict[str, int] = {}  # on the way to who reads it
    joined: dict[str, str] = {}
    first: dict[tuple[str, int, int], str] = {}

    def top(name: str) -> str:
        while joined[name] != name:
            name = joined[name]
        return name

    def summed(name: str) -> str:
        while by_name[name].kind == _TREE:
            name = max(by_name[name].operands, key=lambda operand: by_name[operand].elements)
        return name

    for instruction in entry:  # operands come before their readers
        name, kind = instruction.name, instruction.kind
        operands = [summed(operand) for operand in instruction.operands]
        here = max((barriers[operand] for operand in operands), default=0)
        barriers[name] = here + (kind in _BARRIERS)
        if kind in (*_NO_KERNEL, _TREE):
            continue
        joined[name] = name
        if kind not in (_FUSION, "reduce"):
            continue
        sizes = [by_name[operand].elements for operand in operands]
        size = instruction.elements if kind == _FUSION else max(sizes)
        for operand in operands:
            source = by_name[operand]
            if source.kind != "constant":  # which has no memory to be read once
                joined[top(name)] = top(first.setdefault((operand, size, here), name))
            if source.kind == _FUSION and source.elements == size and barriers[operand] == here:
                joined[top(name)] = top(operand)
    groups: dict[str, set[str]] = collections.defaultdict(set)
    for name in joined:
        groups[top(name)].add(name)
    return {frozenset(group) for group in groups.values()}


def _count(
    module: Mapping[str, Sequence[Instruction]],
    name: str,
    times: int,
    kinds: collections.Counter[str],
) -> None:
    """Adds the kernels of a computation that runs `times`, and of the loops in it."""
    for instruction in module[name]:
        if instruction.kind == "while":
            (body,) = _CALLED.findall(instruction.line)
            (condition,) = _CONDITION.findall(instruction.line)
            bounds = [int(n) for i in module[condition] for n in _BOUND.findall(i.line)]
            _count(module, body, times * max(bounds, default=1), kinds)
        elif instruction.kind not in (*_NO_KERNEL, _TREE):
            kinds[instruction.kind] += times


def _parsed(text: str) -> dict[str, list[Instruction]]:
    """The computations of a module by name, the entry's as "ENTRY"."""
    module: dict[str, list[Instruction]] = {}
    name = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = "ENTRY" if head["entry"] else head["name"]
            module[name] = []
        elif found := _INSTRUCTION.match(line):
            own = {instruction.name for instruction in module[name]}
            words = re.findall(r"[A-Za-z_][\w.\-]*", found["operands"])
            operands = tuple(word for word in words if word in own)
            # Those that are called come first, so that what they are is known.
            kind = _kind(found["kind"], _CALLED.findall(line), module)
            module[name].append(
                Instruction(found["name"], kind, _elements(found["shape"]), operands, line)
            )
    return {name: _with_trees(body) for name, body in module.items()}


def _kind(kind: str, called: Sequence[str], module: Mapping[str, Sequence[Instruction]]) -> str:
    """What an instruction is: of a fusion, or a call of one by several threads, its barrier."""
    if kind in ("call", "fusion"):
        inner = {i.kind for name in called for i in module.get(name, ())}
        return min(inner & _BARRIERS, default=_FUSION)
    return kind if kind in _NO_KERNEL | _BARRIERS else _FUSION


def _with_trees(body: Sequence[Instruction]) -> list[Instruction]:
    """A computation in which each `reduce-window` that only sums read is part of them."""
    readers: dict[str, set[str]] = collections.defaultdict(set)
    found: list[Instruction] = []
    for instruction in reversed(body):
        kind = instruction.kind
        if kind == "reduce-window" and readers[instruction.name] <= {"reduce", _TREE}:
            kind = _TREE if readers[instruction.name] else kind
        for operand in instruction.operands:
            readers[operand].add(kind)
        found.append(dataclasses.replace(instruction, kind=kind))
    return found[::-1]


def _elements(shape: str) -> int:
    """Of the first array of a shape such as ``(f32[2,3]{1,0}, s32[])``."""
    dims: str = (re.findall(r"\[([\d,]*)\]", shape) or [""])[0]
    return math.prod(int(dim) for dim in dims.split(",") if dim)
