"""The models that are made here, with their right answers worked out by numpy: what no backend can agree on wrongly.

A chain of matrix products, a convolutional classifier, several outputs, an If, a Loop; one that never ends, one that
asks for all memory. Not here: models of a repository (``subjects``), comparing (``compare``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardware.acceptance.onnx_file import Shape, graph, model, node, value, weight

Array = np.ndarray[Any, Any]

SEED = 7
WIDTH = 64
ROUNDS = 8
FIXED: Shape = (4, 16)


@dataclass(frozen=True, slots=True)
class Made:
    """``answer`` takes the values of the inputs in order and gives those of the outputs in order."""

    name: str
    file: bytes
    answer: Callable[..., tuple[Array, ...]]
    control_flow: bool = False
    """TensorRT may have no implementation for it and be none the worse."""


def all_models() -> tuple[Made, ...]:
    return chain(), classifier(), outputs(), branch(), loop()


def chain() -> Made:
    """x [rows, 64] through three products with tanh between them."""
    weights = [_weights(n, WIDTH, WIDTH) for n in range(3)]
    nodes, last = [], "x"
    for n in range(3):
        nodes += [node("MatMul", [last, f"w{n}"], [f"m{n}"]), node("Tanh", [f"m{n}"], [f"t{n}"])]
        last = f"t{n}"
    nodes.append(node("Identity", [last], ["y"]))
    named = [weight(f"w{n}", array) for n, array in enumerate(weights)]
    main = graph(nodes, [value("x", "FP32", (-1, WIDTH))], [value("y", "FP32", (-1, WIDTH))], named)

    def answer(x: Array) -> tuple[Array, ...]:
        y = x.astype("f8")
        for array in weights:
            y = np.tanh(y @ array)
        return (y,)

    return Made("made-chain", model(main), answer)


def classifier() -> Made:
    """x [rows, 3, 32, 32] through two convolutions and a mean to ten scores."""
    first, second, head = _weights(10, 8, 3, 3, 3), _weights(11, 16, 8, 3, 3), _weights(12, 16, 10) * 4
    pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        node("Conv", ["x", "first"], ["c1"], pads),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "second"], ["c2"], {**pads, "strides": [2, 2]}),
        node("Relu", ["c2"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("MatMul", ["f", "head"], ["scores"]),
    ]
    named = [weight("first", first), weight("second", second), weight("head", head)]
    main = graph(nodes, [value("x", "FP32", (-1, 3, 32, 32))], [value("scores", "FP32", (-1, 10))], named)

    def answer(x: Array) -> tuple[Array, ...]:
        hidden = np.maximum(_convolved(x.astype("f8"), first), 0)
        pooled = np.maximum(_convolved(hidden, second)[:, :, ::2, ::2], 0).mean((2, 3))
        return (pooled @ head,)

    return Made("made-classifier", model(main), answer)


def outputs() -> Made:
    """x [rows, 32]: its sum, its square, and where it is largest."""
    nodes = [
        node("ReduceSum", ["x", "axes"], ["sum"], {"keepdims": 1}),
        node("Mul", ["x", "x"], ["square"]),
        node("ArgMax", ["x"], ["largest"], {"axis": 1, "keepdims": 0}),
    ]
    found = [
        value("sum", "FP32", (-1, 1)),
        value("square", "FP32", (-1, 32)),
        value("largest", "INT64", (-1,)),
    ]
    main = graph(nodes, [value("x", "FP32", (-1, 32))], found, [weight("axes", np.array([1]))])

    def answer(x: Array) -> tuple[Array, ...]:
        return x.sum(1, dtype="f8", keepdims=True), x.astype("f8") ** 2, x.argmax(1)

    return Made("made-outputs", model(main), answer)


def branch() -> Made:
    """x [4, 16] doubled if its mean is above one half, else lessened by one."""
    then = graph([node("Mul", ["x", "two"], ["doubled"])], [], [value("doubled", "FP32", FIXED)])
    other = graph([node("Sub", ["x", "one"], ["lessened"])], [], [value("lessened", "FP32", FIXED)])
    nodes = [
        node("ReduceMean", ["x"], ["mean"], {"keepdims": 0}),
        node("Greater", ["mean", "half"], ["above"]),
        node("If", ["above"], ["y"], {"then_branch": then, "else_branch": other}),
    ]
    named = [weight("half", _scalar(0.5)), weight("one", _scalar(1)), weight("two", _scalar(2))]
    main = graph(nodes, [value("x", "FP32", FIXED)], [value("y", "FP32", FIXED)], named)

    def answer(x: Array) -> tuple[Array, ...]:
        return (x * 2.0 if x.mean(dtype="f8") > 0.5 else x - 1.0,)

    return Made("made-branch", model(main), answer, control_flow=True)


def loop() -> Made:
    """x [4, 16] halved and raised by one, eight times."""
    body = graph(
        [
            node("Identity", ["go"], ["go_on"]),
            node("Mul", ["now", "half"], ["halved"]),
            node("Add", ["halved", "one"], ["next"]),
        ],
        [value("round", "INT64", ()), value("go", "BOOL", ()), value("now", "FP32", FIXED)],
        [value("go_on", "BOOL", ()), value("next", "FP32", FIXED)],
    )
    named = [
        weight("rounds", np.array(ROUNDS)),
        weight("true", np.array(True)),
        weight("half", _scalar(0.5)),
        weight("one", _scalar(1)),
    ]
    nodes = [node("Loop", ["rounds", "true", "x"], ["y"], {"body": body})]
    main = graph(nodes, [value("x", "FP32", FIXED)], [value("y", "FP32", FIXED)], named)

    def answer(x: Array) -> tuple[Array, ...]:
        y = x.astype("f8")
        for _ in range(ROUNDS):
            y = y * 0.5 + 1
        return (y,)

    return Made("made-loop", model(main), answer, control_flow=True)


def counter() -> bytes:
    """N [] INT64 rounds that do next to nothing; with 2**62 of them it never ends."""
    body = graph(
        [node("Identity", ["go"], ["go_on"]), node("Add", ["sum", "one"], ["next"])],
        [value("round", "INT64", ()), value("go", "BOOL", ()), value("sum", "INT64", ())],
        [value("go_on", "BOOL", ()), value("next", "INT64", ())],
        [weight("one", np.array(1))],
    )
    named = [weight("true", np.array(True)), weight("zero", np.array(0))]
    nodes = [node("Loop", ["N", "true", "zero"], ["Y"], {"body": body})]
    return model(graph(nodes, [value("N", "INT64", ())], [value("Y", "INT64", ())], named))


def greedy() -> bytes:
    """N [2] INT64 to the sum of so many zeros: a small request for as much memory as it says."""
    nodes = [node("ConstantOfShape", ["N"], ["Z"]), node("ReduceSum", ["Z"], ["Y"], {"keepdims": 0})]
    return model(graph(nodes, [value("N", "INT64", (2,))], [value("Y", "FP32", ())]))


def _weights(seed: int, *shape: int) -> Array:
    """Scaled so that values neither vanish nor explode from layer to layer."""
    fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
    drawn = np.random.default_rng([SEED, seed]).standard_normal(shape)
    scaled: Array = (drawn / np.sqrt(fan_in)).astype("f4")
    return scaled


def _scalar(number: float) -> Array:
    return np.array(number, "f4")


def _convolved(x: Array, kernels: Array) -> Array:
    """A 3 x 3 convolution with a border of zeros."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    convolved: Array = np.einsum("nchwij,kcij->nkhw", windows, kernels.astype("f8"))
    return convolved
