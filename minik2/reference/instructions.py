"""Four things said in the compiler's own language, LLVM's, because Numba's has no words for them.

Unusual here: a tile of a matrix product keeps two dozen vectors of sums in registers, from its
first step to its last. No compiler arrives at that from loops over numbers; written as vectors, it
is what the processor runs. LLVM makes of a vector what there is: one register of AVX-512, two of
AVX2, four of NEON.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic as numba_intrinsic

# Bytes of a vector: 16 float32 or 8 float64.
VECTOR = 64
# Of a tile that is so many vectors wide, the rows: all its sums, a row of b and one number of `a`
# in 32 registers; or, where a vector takes two or four of them, in as many of those.
_FEATURES = getattr(config, "CPU_FEATURES", None)  # what NUMBA_CPU_FEATURES asks for
WIDE_REGISTERS = (
    binding.get_host_cpu_features().get("avx512f", False)
    if _FEATURES is None
    else "+avx512f" in _FEATURES
)
ROWS = (0, 8, 8, 8, 6) if WIDE_REGISTERS else (0, 6, 3, 2, 1)
# The widest tile that is used.
WIDEST = 4 if WIDE_REGISTERS else 1

# Untyped to mypy: what calls an intrinsic leaves out its first argument.
intrinsic: Any = numba_intrinsic
_INT, _BYTES = ir.IntType(32), ir.IntType(8).as_pointer()


def _numbers(context: Any, signature: Any) -> tuple[ir.Type, int, int]:
    """What the first argument is an address of, how many make a vector, and the bytes of one."""
    number = signature.args[0].dtype
    size = number.bitwidth // 8
    return context.get_value_type(number), VECTOR // size, size


def _prefetch(module: ir.Module) -> ir.Function:
    """LLVM's prefetch(address, 0 for reading, 3 for the first-level cache, 1 for data)."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, _INT, _INT, _INT])
    return module.declare_intrinsic("llvm.prefetch", [_BYTES], kind)


def make_tile(rows: int, width: int) -> Any:
    """A tile of `rows` rows and `width` vectors: c[r] = Σ_k a[r, k] b[k].

    To compiled code it is tile(a, row, last, b, count, c, stride): a and c are addresses,
    with their strides in numbers; b (count, width) vectors without gaps; rows of `a` beyond `last`
    do not exist, and the last one is read in their place.
    """

    @intrinsic
    def tile(context, a, row, last, b, count, c, stride):
        def code(context, builder, signature, args):
            a, row, last, b, count, c, stride = args
            number, lanes, size = _numbers(context, signature)
            vector, index = ir.VectorType(number, lanes), row.type
            undefined, spread = ir.Constant(vector, ir.Undefined), ir.VectorType(_INT, lanes)

            def place(start, steps, step=1):
                steps = ir.Constant(index, steps) if isinstance(steps, int) else steps
                return builder.gep(start, [builder.mul(steps, ir.Constant(index, step))])

            def vector_at(start, number):
                return builder.bitcast(place(start, number, lanes), vector.as_pointer())

            starts = []
            for r in range(rows):
                own = ir.Constant(index, r)
                own = builder.select(builder.icmp_signed("<", own, last), own, last)
                starts.append(builder.gep(a, [builder.mul(own, row)]))

            before = builder.block
            loop, body, end = (builder.append_basic_block(n) for n in ("loop", "body", "end"))
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(index)
            sums = [[builder.phi(vector) for _ in range(width)] for _ in range(rows)]
            builder.cbranch(builder.icmp_signed("<", k, count), body, end)

            builder.position_at_end(body)
            here = place(b, k, width * lanes)
            # The next tile's rows are on their way meanwhile: a row is too short for the processor
            # to find out by itself how memory is being read.
            next_rows = place(builder.gep(a, [builder.mul(row, ir.Constant(index, rows))]), k, rows)
            builder.call(_prefetch(builder.module), [
                builder.bitcast(next_rows, _BYTES), *(ir.Constant(_INT, n) for n in (0, 3, 1)),
            ])  # fmt: skip
            columns = [builder.load(vector_at(here, v), align=size) for v in range(width)]
            for start, row_sums in zip(starts, sums, strict=True):
                one = builder.load(builder.gep(start, [k]))
                one = builder.insert_element(undefined, one, ir.Constant(_INT, 0))
                one = builder.shuffle_vector(one, undefined, ir.Constant(spread, None))
                for total, x in zip(row_sums, columns, strict=True):
                    # "contract": multiply and add in one instruction, rounded once.
                    term = builder.fmul(one, x, flags=["contract"])
                    total.add_incoming(ir.Constant(vector, None), before)
                    total.add_incoming(builder.fadd(total, term, flags=["contract"]), body)
            k.add_incoming(ir.Constant(index, 0), before)
            k.add_incoming(builder.add(k, ir.Constant(index, 1)), body)
            builder.branch(loop)

            builder.position_at_end(end)
            for r, row_sums in enumerate(sums):
                out = builder.gep(c, [builder.mul(stride, ir.Constant(index, r))])
                for v, total in enumerate(row_sums):
                    builder.store(total, vector_at(out, v), align=size)
            return context.get_dummy_value()

        whole = types.intp
        return types.void(a, whole, whole, b, whole, c, whole), code

    return tile


@intrinsic
def turn(context, x, row, y, stride):
    """y[j, i] = x[i, j] of a square as wide as a vector; row and stride in numbers.

    In log2(width) rounds: at distance d, what stands d to the right of the diagonal and what
    stands d below it change places, in all squares of 2d at once.
    """

    def code(context, builder, signature, args):
        x, row, y, stride = args
        number, lanes, size = _numbers(context, signature)
        vector, spread = ir.VectorType(number, lanes), ir.VectorType(_INT, lanes)

        def vector_at(start, step, number):
            start = builder.gep(start, [builder.mul(step, ir.Constant(step.type, number))])
            return builder.bitcast(start, vector.as_pointer())

        rows = []
        for r in range(lanes):
            start = vector_at(x, row, r)
            rows.append(builder.load(start, align=size))
            # The same rows are soon read a vector further on.
            builder.call(_prefetch(builder.module), [
                builder.bitcast(builder.gep(start, [ir.Constant(_INT, 1)]), _BYTES),
                *(ir.Constant(_INT, n) for n in (0, 3, 1)),
            ])  # fmt: skip
        distance = 1
        while distance < lanes:
            own = range(lanes)
            upper = [lanes + n - distance if n & distance else n for n in own]
            lower = [lanes + n if n & distance else n + distance for n in own]
            for r in own:
                if not r & distance:
                    pair = rows[r], rows[r + distance]
                    rows[r] = builder.shuffle_vector(*pair, ir.Constant(spread, upper))
                    rows[r + distance] = builder.shuffle_vector(*pair, ir.Constant(spread, lower))
            distance *= 2
        for r in range(lanes):
            builder.store(rows[r], vector_at(y, stride, r), align=size)
        return context.get_dummy_value()

    return types.void(x, types.intp, y, types.intp), code


@intrinsic
def address(context, x, i, j):
    """Where x[i, j] lies."""

    def code(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        steps = cgutils.unpack_tuple(builder, array.strides)
        offset = builder.add(builder.mul(args[1], steps[0]), builder.mul(args[2], steps[1]))
        start = builder.bitcast(array.data, _BYTES)
        return builder.bitcast(builder.gep(start, [offset]), array.data.type)

    return types.CPointer(x.dtype)(x, types.intp, types.intp), code


@intrinsic
def take(context, counter):
    """counter[0], which is then one more: no two threads are given the same number."""

    def code(context, builder, signature, args):
        place = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), code
