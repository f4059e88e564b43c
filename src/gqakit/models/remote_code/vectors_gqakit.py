"""Eight float32 in a register of the processor, as a type that functions compiled by numba can hold.

This file is copied into every grouped checkpoint, so it imports nothing of gqakit. Only `loops_gqakit` and `kernels_gqakit`
use it. What numba keeps on disk it renews when the file of the function itself changes: touch `loops_gqakit` with this one.
"""

from __future__ import annotations

from typing import Any

try:
    from llvmlite import ir
    from numba import extending, njit, types
    from numba.core import cgutils
    from numba.extending import models, register_model
except ImportError as error:
    raise ImportError("the kernels for decoding on a CPU need numba: pip install numba") from error

LANES = 8

compiled = njit(nogil=True, error_model="numpy", boundscheck=False, cache=True)
intrinsic: Any = extending.intrinsic  # its functions are called without the `typing` they are defined with

_VECTOR = ir.VectorType(ir.FloatType(), LANES)


class _Float8(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Float8")


_float8 = _Float8()


@register_model(_Float8)
class _Float8Model(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _VECTOR)


def _element(array: Any) -> Any:
    """The LLVM type of an array's numbers: 16 bits, signed, are a bfloat16, unsigned a float16."""
    return {types.float32: ir.FloatType(), types.int16: ir.IntType(16), types.uint16: ir.HalfType()}[
        array.dtype
    ]


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Where eight numbers of an array begin."""
    element = _element(array_type)
    data = context.make_array(array_type)(context, builder, array).data
    first = builder.gep(builder.bitcast(data, element.as_pointer()), [index])
    return builder.bitcast(first, ir.VectorType(element, LANES).as_pointer())


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """`array[index : index + 8]`, widened."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        address = _address(context, builder, array_type, *args)
        if array_type.dtype == types.float32:
            return builder.load(address, align=4)
        read = builder.load(address, align=2)
        if array_type.dtype == types.uint16:
            return builder.fpext(read, _VECTOR)
        wide = ir.VectorType(ir.IntType(32), LANES)
        return builder.bitcast(
            builder.shl(builder.zext(read, wide), ir.Constant(wide, [16] * LANES)), _VECTOR
        )

    return _float8(array, types.intp), codegen


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """`array[index : index + 8] = vector`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, signature.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _float8), codegen


@intrinsic
def fetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask memory for `array[index]`; past the end nothing happens."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bit, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(_address(context, builder, signature.args[0], *args), bit)
        kind = ir.FunctionType(ir.VoidType(), [bit, flag, flag, flag])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(prefetch, [address, flag(0), flag(3), flag(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def add_product(typing: Any, one: Any, two: Any, total: Any) -> Any:
    """`one · two + total`, in one step where the processor has it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.fmul(args[0], args[1], flags=("contract",))
        return builder.fadd(product, args[2], flags=("contract",))

    return _float8(_float8, _float8, _float8), codegen


@intrinsic
def repeat(typing: Any, array: Any, index: Any) -> Any:
    """`array[index]`, float32, in all eight places."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], *args)
        number = builder.load(builder.bitcast(address, ir.FloatType().as_pointer()), align=4)
        empty, index = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)
        one = builder.insert_element(empty, number, index(0))
        return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))

    return _float8(array, types.intp), codegen


@intrinsic
def zero(typing: Any) -> Any:
    """Eight zeros."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_VECTOR, [0.0] * LANES)

    return _float8(), codegen


@intrinsic
def sum_of(typing: Any, vector: Any) -> Any:
    """The sum of the eight."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, lanes, index = args[0], LANES, ir.IntType(32)
        while lanes > 1:
            lanes //= 2
            empty = ir.Constant(value.type, ir.Undefined)
            low, high = (
                builder.shuffle_vector(
                    value, empty, ir.Constant(ir.VectorType(index, lanes), list(range(at, at + lanes)))
                )
                for at in (0, lanes)
            )
            value = builder.fadd(low, high)
        return builder.extract_element(value, index(0))

    return types.float32(_float8), codegen


@intrinsic
def sums_of(typing: Any, *vectors: Any) -> Any:
    """The sums of eight vectors, in their order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def halves(one: Any, two: Any, low: list[int], high: list[int]) -> Any:
            masks = (ir.Constant(ir.VectorType(ir.IntType(32), LANES), places) for places in (low, high))
            return builder.fadd(*(builder.shuffle_vector(one, two, mask) for mask in masks))

        # Vectors 0 and 4 become one, of their halves; from there on each half of a register goes its own way.
        (vectors,) = (cgutils.unpack_tuple(builder, each) for each in args)
        fours = [
            halves(vectors[n], vectors[n + 4], [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
            for n in range(4)
        ]
        even, odd = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]
        low, high = halves(fours[0], fours[1], even, odd), halves(fours[2], fours[3], even, odd)
        return halves(low, high, even, odd)

    return _float8(types.StarArgTuple(vectors)), codegen


@intrinsic(prefer_literal=True)
def lane(typing: Any, vector: Any, place: Any) -> Any:
    """One of the eight; the place is a constant."""
    if not isinstance(place, types.IntegerLiteral):
        return None
    constant = ir.IntType(32)(place.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], constant)

    return types.float32(_float8, place), codegen
