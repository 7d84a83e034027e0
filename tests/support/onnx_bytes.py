"""Tiny ONNX models, written field by field: the `onnx` package is not among the tests' tools."""

from __future__ import annotations

import struct

FLOAT, INT64, BOOL = 1, 7, 9
_GRAPH = 5  # AttributeProto.type


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def value_info(name: str, element: int, shape: tuple[int | str, ...]) -> bytes:
    dimensions = (field(2, d) if isinstance(d, str) else field(1, d) for d in shape)
    tensor = field(1, element) + field(2, b"".join(field(1, d) for d in dimensions))
    return field(1, name) + field(2, field(1, tensor))


def tensor(name: str, element: int, shape: tuple[int, ...], raw: bytes) -> bytes:
    dimensions = b"".join(field(1, d) for d in shape)
    return dimensions + field(2, element) + field(8, name) + field(9, raw)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def external_tensor(name: str, shape: tuple[int, ...], **where: str) -> bytes:
    return external(name, FLOAT, shape, where)


def external(name: str, element: int, shape: tuple[int, ...], where: dict[str, str]) -> bytes:
    entries = b"".join(field(13, field(1, key) + field(2, text)) for key, text in where.items())
    dimensions = b"".join(field(1, d) for d in shape)
    return dimensions + field(2, element) + field(8, name) + entries + field(14, 1)


def node(
    op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], *attributes: bytes, domain: str = ""
) -> bytes:
    names = b"".join(field(1, n) for n in inputs) + b"".join(field(2, n) for n in outputs)
    rest = b"".join(field(5, a) for a in attributes)
    return names + field(4, op) + rest + (field(7, domain) if domain else b"")


def graph_attribute(name: str, graph: bytes) -> bytes:
    return field(1, name) + field(6, graph) + field(20, _GRAPH)


def graph(
    nodes: tuple[bytes, ...],
    inputs: tuple[bytes, ...],
    outputs: tuple[bytes, ...],
    initializers: tuple[bytes, ...] = (),
) -> bytes:
    parts = [field(1, n) for n in nodes] + [field(2, "g")]
    parts += [field(5, i) for i in initializers]
    parts += [field(11, i) for i in inputs] + [field(12, o) for o in outputs]
    return b"".join(parts)


def model(content: bytes) -> bytes:
    return field(1, 8) + field(7, content) + field(8, field(1, "") + field(2, 13))


# onnx.proto TensorProto.DataType, by the datatypes of the Open Inference Protocol.
ELEMENTS = {
    "FP32": 1,
    "UINT8": 2,
    "INT8": 3,
    "UINT16": 4,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    "BYTES": 8,
    "BOOL": 9,
    "FP16": 10,
    "FP64": 11,
    "UINT32": 12,
    "UINT64": 13,
    "BF16": 16,
}


def identity(datatype: str) -> bytes:
    """``y`` is ``x``, of ``datatype`` and shape [n, 2]."""
    x, y = (value_info(name, ELEMENTS[datatype], ("n", 2)) for name in "xy")
    return model(graph((node("Identity", ("x",), ("y",)),), (x,), (y,)))


def cast(source: str, target: str, datatype: str) -> bytes:
    to = field(1, "to") + field(3, ELEMENTS[datatype]) + field(20, 2)
    return node("Cast", (source,), (target,), to)


def doubled(datatype: str) -> bytes:
    """``y`` is ``x`` plus ``x``, computed in FP32 and given back in ``datatype``, [n, 2]."""
    x, y = (value_info(name, ELEMENTS[datatype], ("n", 2)) for name in "xy")
    nodes = cast("x", "f", "FP32"), node("Add", ("f", "f"), ("g",)), cast("g", "y", datatype)
    return model(graph(nodes, (x,), (y,)))


X = value_info("x", FLOAT, ("n", 3))
Y = value_info("y", FLOAT, ("n", 2))
MATMUL = node("MatMul", ("x", "w"), ("y",))


def linear(weights: bytes = b"") -> bytes:
    """``y = x @ w`` with x of shape [n, 3] and w = [[1, 2], [3, 4], [5, 6]]."""
    w = weights or tensor("w", FLOAT, (3, 2), floats(1, 2, 3, 4, 5, 6))
    return model(graph((MATMUL,), (X,), (Y,), (w,)))


def endless() -> bytes:
    """``y`` is ``x`` plus one for ever: a Loop whose condition stays true; x is a scalar."""
    body = graph(
        (node("Add", ("v", "one"), ("v2",)), node("Identity", ("go",), ("go2",))),
        (value_info("i", INT64, ()), value_info("go", BOOL, ()), value_info("v", FLOAT, ())),
        (value_info("go2", BOOL, ()), value_info("v2", FLOAT, ())),
    )
    constants = (tensor("go0", BOOL, (), b"\1"), tensor("one", FLOAT, (), floats(1)))
    loop = node("Loop", ("", "go0", "x"), ("y",), graph_attribute("body", body))
    ends = (value_info("x", FLOAT, ()),), (value_info("y", FLOAT, ()),)
    return model(graph((loop,), *ends, constants))


def repeating(rows: int | str = 1) -> bytes:
    """``y`` is ``x`` plus one, ``n`` times over; y is [m] as x, n an INT64 of shape [1].

    With ``rows`` "k" it says that n may have more elements; then a run fails.
    """
    body = graph(
        (node("Add", ("v", "one"), ("v2",)), node("Identity", ("go",), ("go2",))),
        (value_info("i", INT64, ()), value_info("go", BOOL, ()), value_info("v", FLOAT, ("m",))),
        (value_info("go2", BOOL, ()), value_info("v2", FLOAT, ("m",))),
    )
    constants = (
        tensor("go0", BOOL, (), b"\1"),
        tensor("one", FLOAT, (), floats(1)),
        tensor("scalar", INT64, (0,), b""),
    )
    nodes = (
        node("Reshape", ("n", "scalar"), ("times",)),
        node("Loop", ("times", "go0", "x"), ("y",), graph_attribute("body", body)),
    )
    x, n = value_info("x", FLOAT, ("m",)), value_info("n", INT64, (rows,))
    return model(graph(nodes, (x, n), (value_info("y", FLOAT, ("m",)),), constants))


def failing() -> bytes:
    """``y = reshape(x, [7, 7])``, which fails for the [n, 3] that it says it takes."""
    shape = tensor("s", INT64, (2,), struct.pack("<2q", 7, 7))
    reshape = node("Reshape", ("x", "s"), ("y",))
    y = value_info("y", FLOAT, ("a", "b"))
    return model(graph((reshape,), (X,), (y,), (shape,)))


def mixing() -> bytes:
    """``y`` is ``x`` less the mean of all rows: a row's answer depends on its neighbours."""
    axes = tensor("axes", INT64, (1,), struct.pack("<q", 0))
    nodes = node("ReduceMean", ("x",), ("m",), ints("axes", 0)), node("Sub", ("x", "m"), ("y",))
    y = value_info("y", FLOAT, ("n", 3))
    return model(graph(nodes, (X,), (y,), (axes,)))


def ints(name: str, *values: int) -> bytes:
    """An attribute that is a list of integers."""
    return field(1, name) + b"".join(field(8, value) for value in values) + field(20, 7)


def pairs() -> bytes:
    """``y`` is the sum of all products of two elements of ``x``: memory grows with its square."""
    x = value_info("x", FLOAT, ("n", 1))
    y = value_info("y", FLOAT, ("a", "b"))
    nodes = (
        node("Transpose", ("x",), ("t",)),
        node("Mul", ("x", "t"), ("p",)),
        node("ReduceSum", ("p",), ("y",)),
    )
    return model(graph(nodes, (x,), (y,)))


def mlp(width: int, layers: int) -> bytes:
    """``y`` is ``x`` after ``layers`` of MatMul and Relu, each ``width`` wide; fixed weights."""
    nodes, weights = _layers(width, layers)
    ends = tuple(value_info(name, FLOAT, ("n", width)) for name in "xy")
    return model(graph(nodes, ends[:1], ends[1:], weights))


def passing(width: int, layers: int) -> bytes:
    """``y`` is ``x``, exactly where that is not negative, after so many layers of work."""
    unit = b"".join(
        bytes(4 * row) + floats(1) + bytes(4 * (width - 1 - row)) for row in range(width)
    )
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    nodes: tuple[bytes, ...] = ()
    for layer in range(layers):
        nodes += (
            node("MatMul", (names[layer], "w"), (f"m{layer}",)),
            node("Relu", (f"m{layer}",), (names[layer + 1],)),
        )
    ends = tuple(value_info(name, FLOAT, ("n", width)) for name in "xy")
    return model(graph(nodes, ends[:1], ends[1:], (tensor("w", FLOAT, (width, width), unit),)))


def guarded_mlp(width: int, layers: int) -> bytes:
    """``mlp``, and beside it ``picked = [10, 20, 30][index]``, which fails for other indices."""
    nodes, weights = _layers(width, layers)
    table = tensor("table", FLOAT, (3,), floats(10, 20, 30))
    nodes += (node("Gather", ("table", "index"), ("picked",)),)
    inputs = value_info("x", FLOAT, ("n", width)), value_info("index", INT64, ("n",))
    outputs = value_info("y", FLOAT, ("n", width)), value_info("picked", FLOAT, ("n",))
    return model(graph(nodes, inputs, outputs, (*weights, table)))


def _layers(width: int, layers: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    count = width * width
    pattern = [((17 * index) % 31 - 15) / (8 * width**0.5) for index in range(min(count, 9973))]
    raw = (floats(*pattern) * (count // len(pattern) + 1))[: 4 * count]
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    nodes: tuple[bytes, ...] = ()
    for layer in range(layers):
        nodes += (
            node("MatMul", (names[layer], f"w{layer}"), (f"m{layer}",)),
            node("Relu", (f"m{layer}",), (names[layer + 1],)),
        )
    weights = tuple(tensor(f"w{n}", FLOAT, (width, width), raw) for n in range(layers))
    return nodes, weights


def largest() -> bytes:
    """``y`` is the largest element of ``x``, whose shape is [n]: much in, little out."""
    reduce = node("ReduceMax", ("x",), ("y",), field(1, "keepdims") + field(3, 0) + field(20, 2))
    ends = (value_info("x", FLOAT, ("n",)),), (value_info("y", FLOAT, ()),)
    return model(graph((reduce,), *ends))


def zeros() -> bytes:
    """``y`` is as many zeros as ``n`` says: little in, much out."""
    fill = node("ConstantOfShape", ("n",), ("y",))
    ends = (value_info("n", INT64, (1,)),), (value_info("y", FLOAT, ("m",)),)
    return model(graph((fill,), *ends))


def counting() -> bytes:
    """A step: ``next`` is ``n`` plus one, ``square`` its square, ``done`` once it is ``limit``."""
    nodes = (
        node("Add", ("n", "one"), ("next",)),
        node("Mul", ("next", "next"), ("square",)),
        node("GreaterOrEqual", ("next", "limit"), ("done",)),
    )
    inputs = tuple(value_info(name, FLOAT, (1,)) for name in ("n", "limit"))
    outputs = (
        *(value_info(name, FLOAT, (1,)) for name in ("next", "square")),
        value_info("done", BOOL, (1,)),
    )
    return model(graph(nodes, inputs, outputs, (tensor("one", FLOAT, (1,), floats(1)),)))


def dividing() -> bytes:
    """``y`` is ``x`` divided by ``d``, of INT32 and shape [n], on the processor's own instruction.

    Of the smallest number and -1 the quotient has no place in 32 bits: x86_64 traps (SIGFPE).
    """
    x, d, y = (value_info(name, ELEMENTS["INT32"], ("n",)) for name in "xdy")
    return model(graph((node("Div", ("x", "d"), ("y",)),), (x, d), (y,)))


def selecting() -> bytes:
    """``y`` is which of the boxes ``b`` [1, n, 4] with scores ``s`` [1, 1, n] overlap no other.

    One operator, whose time grows with the square of n and which looks at no deadline.
    """
    constants = (
        tensor("most", INT64, (1,), struct.pack("<q", 1 << 30)),
        tensor("overlap", FLOAT, (1,), floats(0.9)),
    )
    select = node("NonMaxSuppression", ("b", "s", "most", "overlap"), ("y",))
    inputs = value_info("b", FLOAT, (1, "n", 4)), value_info("s", FLOAT, (1, 1, "n"))
    return model(graph((select,), inputs, (value_info("y", INT64, ("m", 3)),), constants))


def dividing_constants() -> bytes:
    """``linear``, and beside it that quotient of two constants, computed while it is loaded."""
    constants = (
        tensor("a", ELEMENTS["INT32"], (1,), struct.pack("<i", -(2**31))),
        tensor("b", ELEMENTS["INT32"], (1,), struct.pack("<i", -1)),
        tensor("w", FLOAT, (3, 2), floats(1, 2, 3, 4, 5, 6)),
    )
    q = value_info("q", ELEMENTS["INT32"], (1,))
    nodes = (MATMUL, node("Div", ("a", "b"), ("q",)))
    return model(graph(nodes, (X,), (Y, q), constants))
