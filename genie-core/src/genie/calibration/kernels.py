"""The operators a calibration measures: a few of each class, over sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from genie.flops import nbytes, work
from genie.graph import Arg, Const, Many, Node, Ref, TensorSpec
from genie.schedule.cost import Trait, classify

FLOATS = ("float32", "bfloat16", "float16")


class Given(NamedTuple):
    """A tensor a kernel is given. ``hot`` ones were just made, as activations are; others come from memory, as weights
    do. ``below`` bounds the numbers of an index, from 0."""

    shape: tuple[int, ...]
    dtype: str
    hot: bool = True
    below: int = 0


class Kernel(NamedTuple):
    """One call: ``args`` name the tensors given by their number."""

    target: str
    given: tuple[Given, ...]
    args: tuple[Arg, ...]
    made: tuple[TensorSpec, ...]
    view: bool = False

    @property
    def operation(self) -> str:
        return self.target.partition(".")[0]

    @property
    def overload(self) -> str:
        return self.target.partition(".")[2]

    def trait(self) -> Trait:
        """What a roofline asks of it."""
        specs = [TensorSpec(each.shape, each.dtype) for each in self.given] + list(self.made)
        first = len(self.given)
        outputs = tuple(range(first, len(specs)))
        aliases = ((first, 0),) if self.view else ()
        done = work(
            Node(0, self.operation, self.overload, self.args, outputs, aliases=aliases),
            specs,
            [nbytes(spec) for spec in specs],
        )
        flops, moved = done.flops or 0, done.read + done.written
        return Trait(classify(self.operation, flops, moved), self.made[0].dtype, flops, moved)


def kernels(dtype: str) -> tuple[Kernel, ...]:
    """All there are, small and large: the caller leaves out what takes too long."""
    made = [*_products(dtype), *_attentions(dtype), *_pointwise(dtype), *_reductions(dtype), *_layouts(dtype)]
    if dtype == "float32":
        made += [*_convolutions(dtype), *_gathers(dtype), *_views(dtype), *_random(dtype), *_others(dtype)]
    return tuple(made)


def scout(dtype: str) -> Kernel:
    """One whose time tells whether a device has a dtype, and how fast."""
    return _linear(128, 512, 512, dtype)


def _spec(dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(shape, dtype)


def _linear(m: int, k: int, n: int, dtype: str) -> Kernel:
    given = (Given((m, k), dtype), Given((n, k), dtype, hot=False))
    return Kernel("aten::linear", given, (Ref(0), Ref(1), None), (_spec(dtype, m, n),))


def _addmm(m: int, k: int, n: int, dtype: str) -> Kernel:
    given = (Given((n,), dtype, hot=False), Given((m, k), dtype), Given((k, n), dtype, hot=False))
    return Kernel("aten::addmm", given, (Ref(0), Ref(1), Ref(2), 1, 1), (_spec(dtype, m, n),))


def _products(dtype: str) -> Iterator[Kernel]:
    for k, n in ((64, 64), (256, 256), (384, 1536), (1024, 1024), (1024, 4096), (4096, 4096), (8192, 8192)):
        for m in (1, 4, 16, 64, 256, 1024, 4096):
            yield _linear(m, k, n, dtype) if (m + k) % 3 else _addmm(m, k, n, dtype)
    yield _addmm(1, 768, 50304, dtype)
    for b, m, k, n in ((8, 1, 64, 128), (8, 64, 64, 64), (64, 64, 64, 128), (64, 256, 64, 256), (128, 512, 128, 512)):
        given = (Given((b, m, k), dtype), Given((b, k, n), dtype))
        yield Kernel("aten::bmm", given, (Ref(0), Ref(1)), (_spec(dtype, b, m, n),))


def _attentions(dtype: str) -> Iterator[Kernel]:
    for b, h, q, kv, d in (
        (1, 6, 1, 32, 64),
        (1, 6, 1, 512, 64),
        (1, 32, 1, 2048, 128),
        (1, 6, 64, 64, 64),
        (8, 6, 128, 128, 64),
        (1, 12, 512, 512, 64),
        (4, 16, 512, 512, 64),
        (1, 32, 2048, 2048, 128),
    ):
        query = Given((b, h, q, d), dtype)
        cache = Given((b, h, kv, d), dtype, hot=q > 1)
        args = (Ref(0), Ref(1), Ref(2), None, 0.0, False)
        yield Kernel("aten::scaled_dot_product_attention", (query, cache, cache), args, (_spec(dtype, b, h, q, d),))


def _pointwise(dtype: str) -> Iterator[Kernel]:
    for shape in ((1, 384), (64, 384), (256, 1024), (1024, 1024), (4096, 1024), (8192, 8192)):
        one, made = Given(shape, dtype), (_spec(dtype, *shape),)
        yield Kernel("aten::add.Tensor", (one, one), (Ref(0), Ref(1), 1), made)
        yield Kernel("aten::mul.Tensor", (one, one), (Ref(0), Ref(1)), made)
        yield Kernel("aten::gelu", (one,), (Ref(0), "none"), made)
        yield Kernel("aten::silu", (one,), (Ref(0),), made)
        yield Kernel("aten::tanh", (one,), (Ref(0),), made)
        yield Kernel("aten::relu", (one,), (Ref(0),), made)


def _reductions(dtype: str) -> Iterator[Kernel]:
    for rows, width in ((1, 384), (64, 384), (512, 1024), (4096, 1024), (16384, 4096)):
        x, scale = Given((rows, width), dtype), Given((width,), dtype, hot=False)
        made = _spec(dtype, rows, width)
        yield Kernel("aten::_softmax", (x,), (Ref(0), -1, False), (made,))
        yield Kernel("aten::mean.dim", (x,), (Ref(0), Many((-1,)), True, None), (_spec(dtype, rows, 1),))
        moments = (_spec(dtype, rows, 1),) * 2
        args = (Ref(0), Many((width,)), Ref(1), Ref(2), 1e-5)
        yield Kernel("aten::native_layer_norm", (x, scale, scale), args, (made, *moments))


def _layouts(dtype: str) -> Iterator[Kernel]:
    for b, h, t, d in ((1, 6, 64, 64), (4, 12, 256, 64), (8, 16, 1024, 128)):
        x, new = Given((b, h, t, d), dtype), Given((b, h, 1, d), dtype)
        grown = _spec(dtype, b, h, t + 1, d)
        yield Kernel("aten::cat", (x, new), (Many((Ref(0), Ref(1))), 2), (grown,))
        yield Kernel("aten::clone", (x,), (Ref(0), None), (_spec(dtype, b, h, t, d),))


def _convolutions(dtype: str) -> Iterator[Kernel]:
    for batch, into, size, out, width in (
        (1, 3, 112, 32, 7),
        (1, 64, 28, 64, 3),
        (1, 64, 56, 64, 3),
        (4, 64, 28, 128, 1),
        (1, 256, 14, 256, 3),
        (1, 512, 7, 512, 3),
        (8, 64, 56, 64, 3),
        (8, 256, 28, 256, 3),
    ):
        given = (Given((batch, into, size, size), dtype), Given((out, into, width, width), dtype, hot=False))
        step, pad = (2 if width == 7 else 1), width // 2
        side = (size + 2 * pad - width) // step + 1
        args = (Ref(0), Ref(1), None, *_pairs(step, pad, 1), False, Many((0, 0)), 1)
        yield Kernel("aten::convolution", given, args, (_spec(dtype, batch, out, side, side),))
    for batch, width, size in ((1, 64, 56), (8, 256, 28)):
        x = Given((batch, width, size, size), dtype)
        made, kept = _spec(dtype, batch, width, size, size), _spec(dtype, 0)
        scale = (Given((width,), dtype, hot=False),) * 4
        args = (Ref(0), Ref(1), Ref(2), Ref(3), Ref(4), False, 0.1, 1e-5)
        yield Kernel("aten::native_batch_norm", (x, *scale), args, (made, kept, kept))
        pooled = _spec(dtype, batch, width, size // 2, size // 2)
        args = (Ref(0), *_pairs(2, 2, 0, 1), False)
        indexes = TensorSpec(pooled.shape, "int64")
        yield Kernel("aten::max_pool2d_with_indices", (x,), args, (pooled, indexes))


def _pairs(*numbers: int) -> tuple[Arg, ...]:
    return tuple(Many((number, number)) for number in numbers)


def _gathers(dtype: str) -> Iterator[Kernel]:
    for rows, width, picked in ((50304, 384, 1), (50304, 384, 64), (32768, 1024, 1024), (4096, 64, 65536)):
        table = Given((rows, width), dtype, hot=False)
        index = Given((picked,), "int64", below=rows)
        made = (_spec(dtype, picked, width),)
        yield Kernel("aten::embedding", (table, index), (Ref(0), Ref(1), -1, False, False), made)
        yield Kernel("aten::index_select", (table, index), (Ref(0), 0, Ref(1)), made)


def _views(dtype: str) -> Iterator[Kernel]:
    for rows in (64, 1024):
        x = Given((rows, 384), dtype)
        yield Kernel("aten::view", (x,), (Ref(0), Many((rows * 384,))), (_spec(dtype, rows * 384),), view=True)
        turned = TensorSpec((384, rows), dtype, (1, 384))
        yield Kernel("aten::transpose.int", (x,), (Ref(0), 0, 1), (turned,), view=True)
        part = TensorSpec((rows, 128), dtype, (384, 1))
        yield Kernel("aten::slice.Tensor", (x,), (Ref(0), 1, 0, 128, 1), (part,), view=True)


def _random(dtype: str) -> Iterator[Kernel]:
    for size in (256, 65536, 1 << 22):
        yield Kernel("aten::rand", (), rand((size,), dtype), (_spec(dtype, size),))


def _others(dtype: str) -> Iterator[Kernel]:
    for rows, width in ((1, 1024), (1, 50304), (64, 1024), (64, 50304)):
        x = Given((rows, width), dtype)
        ordered, places = _spec(dtype, rows, width), TensorSpec((rows, width), "int64")
        yield Kernel("aten::sort", (x,), (Ref(0), -1, True), (ordered, places))
        best, where = _spec(dtype, rows, 50), TensorSpec((rows, 50), "int64")
        yield Kernel("aten::topk", (x,), (Ref(0), 50, -1, True, True), (best, where))
        yield Kernel("aten::argmax", (x,), (Ref(0), -1, False), (TensorSpec((rows,), "int64"),))
        yield Kernel("aten::cumsum", (x,), (Ref(0), -1, None), (ordered,))


def rand(shape: Sequence[int], dtype: str) -> tuple[Arg, ...]:
    """The arguments of ``aten::rand``."""
    return (Many(tuple(shape)), *_made(dtype))


def randint(below: int, shape: Sequence[int]) -> tuple[Arg, ...]:
    """The arguments of ``aten::randint``."""
    return (below, Many(tuple(shape)), *_made("int64"))


def _made(dtype: str) -> tuple[Arg, ...]:
    return Const("dtype", dtype), Const("layout", "strided"), Const("device", "self"), None


def size_of(given: Given) -> int:
    return prod(given.shape) * (8 if given.dtype == "int64" else 4 if given.dtype == "float32" else 2)
