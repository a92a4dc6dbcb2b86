"""What a program has to compute and to move: operations read off its jaxpr, bytes off the compiled program's text.

XLA's own cost analysis is not enough for a roofline: it counts a loop's body once, however often it runs, and on a GPU
it does not see into calls of cuDNN and cuBLAS, which are most of a network's work.
"""

import math
import re
from typing import NamedTuple

_BYTES = {"pred": 1, "bf16": 2}
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPCODE = re.compile(r"^([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(body|calls|to_apply)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SCRATCH = re.compile(r"[us]8\[[\d,]*\]")
# They name values, and move nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
# They read, of their first operand, only what they return.
_PARTIAL_READS = {"dynamic-slice", "slice", "gather"}


def products_flop(jaxpr):
    """Counts the operations of all matrix products and convolutions, two for each product of numbers.

    Args:
      jaxpr: a closed or open jaxpr, of `jax.make_jaxpr` for example.

    Returns:
      Operations, those in loops of known length as often as they run; of a conditional, the costliest branch.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size // outputs
        else:
            inner = [products_flop(sub) for value in params.values() for sub in _jaxprs(value)]
            if inner:
                count = params["length"] if name == "scan" else 1
                total += count * (max(inner) if name == "cond" else sum(inner))
    return total


def _jaxprs(value):
    if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
        return [value]
    return [sub for item in value for sub in _jaxprs(item)] if isinstance(value, list | tuple) else []


def shape_bytes(text):
    """Counts the bytes of an HLO type: `f32[8,128]{1,0:T(8,128)}`, or a tuple of such; what is no array has none."""
    total = 0
    for name, dimensions in _SHAPE.findall(text):
        bits = re.search(r"\d+", name)
        width = _BYTES.get(name) or (int(bits[0]) / 8 if bits else 0)
        total += width * math.prod(int(d) for d in dimensions.split(",") if d)
    return int(total)


def program_bytes(text):
    """Adds up what a compiled program's kernels read and write, each operand and each result once.

    That is what a device moves where nothing stays in its caches from one kernel to the next. A kernel that only slices
    an operand, or updates a slice of it in place, counts the slice. Loops count as often as they are known to run.

    Args:
      text: the optimised program, `compiled.as_text()`.

    Returns:
      Bytes.

    Raises:
      ValueError: the text is not that of a compiled program.
    """
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError("Expected the text of a compiled program with an ENTRY computation, found none.")
    return _computation_bytes(computations, entry)


class _Instruction(NamedTuple):
    """One line of a program: `ROOT name = result opcode(inside), rest`."""

    result: str
    opcode: str
    inside: str
    rest: str
    root: bool

    @property
    def operands(self):
        return _NAME.findall(self.inside)


def _parse(text):
    """Reads computations, each a dict of instructions by name; and the name of the one that the program starts with."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        found = _COMPUTATION.match(line)
        if found:
            current = computations.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
        elif current is not None and " = " in line:
            left, _, right = line.strip().partition(" = ")
            result, right = _split_result(right)
            opcode = _OPCODE.match(right)
            if opcode:
                inside, rest = _split_brackets(right[opcode.end() - 1 :])
                name = left.removeprefix("ROOT ").lstrip("%")
                current[name] = _Instruction(result, opcode[1], inside, rest, left.startswith("ROOT "))
    return computations, entry


def _split_result(text):
    """Takes the result's type off the front: `f32[8]{0} add(...)`, or a tuple's in brackets."""
    if text.startswith("("):
        return _split_brackets(text)
    result, _, rest = text.partition(" ")
    return result, rest


def _split_brackets(text):
    """Splits a text that starts with a bracket behind the one that closes it; the bracket's inside, the rest."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:position], text[position + 1 :].lstrip()
    return text[1:], ""


def _computation_bytes(computations, name):
    return sum(_instruction_bytes(computations, computations[name], i) for i in computations[name].values())


def _instruction_bytes(computations, neighbours, instruction):
    opcode, rest = instruction.opcode, instruction.rest
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    called = dict(_CALLED.findall(rest))
    if opcode == "while":
        trips = _TRIPS.search(rest)
        return (int(trips[1]) if trips else 1) * _computation_bytes(computations, called["body"])
    if opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", rest)
        branches = _NAME.findall(listed[1]) if listed else re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", rest)
        return max(_computation_bytes(computations, branch) for branch in branches)
    if opcode == "call":
        return _computation_bytes(computations, called["to_apply"])
    if opcode == "async-start":
        return _computation_bytes(computations, called["calls"])
    sizes = [shape_bytes(neighbours[operand].result) for operand in instruction.operands if operand in neighbours]
    if opcode == "fusion":
        return _fusion_bytes(computations[called["calls"]], sizes, instruction.result)
    if opcode in _PARTIAL_READS:
        return 2 * shape_bytes(instruction.result) + sum(sizes[1:])
    if opcode == "dynamic-update-slice":
        return 2 * sizes[1] + sum(sizes[2:])
    # A library's scratch space comes back beside its result, as a tuple's part: u8 from cuDNN, s8 from cuBLAS.
    scratch = opcode == "custom-call" and instruction.result.count("[") > 1
    return sum(sizes) + shape_bytes(_SCRATCH.sub("", instruction.result) if scratch else instruction.result)


def _fusion_bytes(inside, sizes, result):
    """A fusion's operands and result; what it only slices, or updates in place, by the slice.

    Args:
      inside: the fused instructions.
      sizes: bytes of each operand.
      result: its type.
    """
    users = {}
    for instruction in inside.values():
        for position, operand in enumerate(instruction.operands):
            users.setdefault(operand, []).append((instruction, position))

    def read(parameter, size):
        uses = [(user, position == 0) for user, position in users.get(parameter, ())]
        if uses and all(first and user.opcode in _PARTIAL_READS for user, first in uses):
            return sum(shape_bytes(user.result) for user, _ in uses)
        updated = uses and all(first and user.opcode == "dynamic-update-slice" for user, first in uses)
        return 0 if updated else size

    parameters = {int(i.inside): name for name, i in inside.items() if i.opcode == "parameter"}
    total = sum(read(parameters.get(number), size) for number, size in enumerate(sizes))
    (root,) = (instruction for instruction in inside.values() if instruction.root)
    if root.opcode == "dynamic-update-slice":
        result = inside[root.operands[1]].result
    return total + shape_bytes(result)
