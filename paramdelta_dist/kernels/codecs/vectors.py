"""Sixteen elements at a time, from codes to sums and back to codes, as instructions of LLVM: rows of blocks are too short for its own
ways of finding out what can be done at once. It makes of them what the processor at hand has.

Two codes of four bits in a byte are taken apart into the low halves of eight bytes and, behind them, the high ones: numbers are kept in
that order until they are codes again. Addresses are of any alignment.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from paramdelta_dist.kernels.codecs.codes import E2M1, E4M3, INT4

LANES = 16
UNIT = (2.0**8, 2.0**14, 1.0)
"""The number of each kind of code over the one that a float16 with its bits is, from which all are made."""
KINDS = (E4M3, E2M1, INT4)
DIFFERS_FROM_BASE, DIFFERS_FROM_POST, NOT_A_NUMBER = 0xFFFF, 0xFFFF << 16, 0xFFFF << 32
"""Bits of what the functions find out, any of which is enough."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()


def _differ(builder: Any, one: Any, other: Any) -> Any:
    """Of each two numbers, whether they are not the same to the bit: zeros have signs."""
    whole = ir.VectorType(_I64 if one.type.element == _F64 else _I32, one.type.count)
    return builder.icmp_unsigned("!=", builder.bitcast(one, whole), builder.bitcast(other, whole))


def _has_float16() -> bool:
    """Whether the processor turns float16 into float32; else that would be left to functions that are nowhere."""
    if config.CPU_NAME or config.CPU_FEATURES:
        return False
    try:
        features = llvm.get_host_cpu_features()
    except RuntimeError:
        return False
    return bool(features.get("f16c") or features.get("neon") or features.get("fp-armv8"))


def _splat(builder: Any, value: Any, lanes: int = LANES) -> Any:
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _all(kind: Any, value: float, lanes: int = LANES) -> Any:
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def _vector(kind: Any, lanes: int = LANES) -> Any:
    return ir.VectorType(kind, lanes)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [each.type for each in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


_FLOAT16 = _has_float16()


def _float32_of_float16(builder: Any, bits: Any) -> Any:
    if _FLOAT16:
        return builder.fpext(builder.bitcast(bits, _vector(ir.HalfType())), _vector(_F32))
    wide = builder.zext(bits, _vector(_I32))
    rest = builder.shl(builder.and_(wide, _all(_I32, 0x7FFF)), _all(_I32, 13))
    normal = builder.bitcast(builder.add(rest, _all(_I32, 112 << 23)), _vector(_F32))
    subnormal = builder.fsub(builder.bitcast(builder.add(rest, _all(_I32, 113 << 23)), _vector(_F32)), _all(_F32, 2.0**-14))
    magnitude = builder.select(builder.icmp_unsigned("<", rest, _all(_I32, 1 << 23)), subnormal, normal)
    sign = builder.shl(builder.and_(wide, _all(_I32, 0x8000)), _all(_I32, 16))
    return builder.bitcast(builder.or_(builder.bitcast(magnitude, _vector(_I32)), sign), _vector(_F32))


def _codes(builder: Any, kind: int, address: Any) -> Any:
    """Sixteen codes, a byte or four bits each, as integers of 16 bits; those of a byte with their sign."""
    if kind == E4M3:
        return builder.sext(_load(builder, address, _vector(_I8)), _vector(_I16))
    bytes_ = builder.zext(_load(builder, address, _vector(_I8, 8)), _vector(_I16, 8))
    high = builder.lshr(bytes_, _all(_I16, 4, 8))
    return builder.shuffle_vector(bytes_, high, ir.Constant(_vector(_I32), list(range(16))))


def _numbers(builder: Any, kind: int, codes: Any) -> Any:
    """float32 of codes, divided by UNIT."""
    if kind == E4M3:
        return _float32_of_float16(builder, builder.and_(builder.shl(codes, _all(_I16, 7)), _all(_I16, 0xBF80)))
    if kind == E2M1:
        rest = builder.and_(builder.shl(codes, _all(_I16, 9)), _all(_I16, 0xE00))
        sign = builder.and_(builder.shl(codes, _all(_I16, 12)), _all(_I16, 0x8000))
        return _float32_of_float16(builder, builder.or_(rest, sign))
    near = builder.sub(builder.and_(codes, _all(_I16, 15)), _all(_I16, 8))
    return builder.sitofp(builder.sext(near, _vector(_I32)), _vector(_F32))


def _are_nan(builder: Any, codes: Any) -> Any:
    return builder.icmp_unsigned("==", builder.and_(codes, _all(_I16, 0x7F)), _all(_I16, 0x7F))


def _widened(builder: Any, numbers: Any, kind: Any) -> Any:
    return builder.fpext(numbers, _vector(kind)) if kind == _F64 and numbers.type.element == _F32 else numbers


def _bits(builder: Any, numbers: Any) -> Any:
    return builder.bitcast(numbers, _vector(_I64 if numbers.type.element == _F64 else _I32))


def _less_difference(builder: Any, acc: Any, y: Any, x: Any) -> Any:
    """acc − (y − x) as `add_deltas` has it: x itself where acc is y."""
    same = builder.icmp_unsigned("==", _bits(builder, acc), _bits(builder, y))
    return builder.select(same, x, builder.fsub(acc, builder.fsub(y, x)))


class _Found:
    """Accumulators of a loop: the least and the largest number of each lane, kept in memory between loops, and bits."""

    def __init__(self, builder: Any, kind: Any, fresh: Any, low: Any, high: Any) -> None:
        self.builder, self.places = builder, (low, high)
        starts = [
            builder.select(fresh, _all(kind, start), _load(builder, place, _vector(kind)))
            for place, start in zip(self.places, (float("inf"), float("-inf")), strict=True)
        ]
        self.ends = [cgutils.alloca_once_value(builder, start) for start in starts]
        self.bits = [cgutils.alloca_once_value(builder, _all(ir.IntType(1), 0)) for _ in range(3)]

    def see(self, numbers: Any) -> None:
        for end, sign in zip(self.ends, "<>", strict=True):
            before = self.builder.load(end)
            self.builder.store(self.builder.select(self.builder.fcmp_ordered(sign, numbers, before), numbers, before), end)

    def note(self, which: int, lanes: Any) -> None:
        self.builder.store(self.builder.or_(self.builder.load(self.bits[which]), lanes), self.bits[which])

    def result(self) -> Any:
        for end, place in zip(self.ends, self.places, strict=True):
            _store(self.builder, self.builder.load(end), place)
        result = _I64(0)
        for which, bits in enumerate(self.bits):
            one = self.builder.zext(self.builder.bitcast(self.builder.load(bits), _I16), _I64)
            result = self.builder.or_(result, self.builder.shl(one, _I64(16 * which)))
        return result


def _step(kind: int) -> int:
    """Bytes of sixteen codes."""
    return LANES if kind == E4M3 else LANES // 2


def _at(builder: Any, address: Any, index: Any, step: int) -> Any:
    return builder.add(address, builder.mul(index, _I64(step)))


def _sum_of(kind: int, narrow: bool) -> Any:
    """The function for one kind of code, computing in float64, or in float32 if `narrow`."""

    @intrinsic
    def sum_row(
        context: Any,
        like: Any,
        count: Any,
        base: Any,
        post: Any,
        old: Any,
        base_scale: Any,
        post_scale: Any,
        old_scale: Any,
        out: Any,
        fresh: Any,
        low: Any,
        high: Any,
    ) -> Any:
        """out[n] = base + post − old, of 16 · count codes at the addresses, with scales times UNIT. Numbers are stored as those of `like`;
        `low` and `high` are the addresses of the least and largest yet, if not `fresh`. Returns bits of what was found."""
        wide = like.dtype == types.float64
        number, inner = _F64 if wide else _F32, _F32 if narrow and not wide else _F64

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, count, *places, one, two, three, out, fresh, low, high = arguments
            factors = [_splat(builder, builder.fptrunc(each, inner) if inner == _F32 else each) for each in (one, two, three)]
            found = _Found(builder, number, fresh, low, high)
            with cgutils.for_range(builder, count, intp=_I64) as loop:
                models = []
                for place, factor in zip(places, factors, strict=True):
                    codes = _codes(builder, kind, _at(builder, place, loop.index, _step(kind)))
                    if kind == E4M3:
                        found.note(2, _are_nan(builder, codes))
                    models.append(builder.fmul(_widened(builder, _numbers(builder, kind, codes), inner), factor))
                total = _less_difference(builder, models[0], models[2], models[1])
                _keep(builder, found, total, number, models[:2], out, loop.index)
            return found.result()

        place, real = types.uint64, types.float64
        return types.int64(like, types.int64, place, place, place, real, real, real, place, types.boolean, place, place), code

    return sum_row


def _any_sum_of(kind: int) -> Any:
    """The function for one kind of code, for any deltas and weights, computing in float64."""

    @intrinsic
    def sum_any_row(
        context: Any,
        like: Any,
        count: Any,
        deltas: Any,
        places: Any,
        start: Any,
        scales: Any,
        weights: Any,
        units: Any,
        posts: Any,
        out: Any,
        fresh: Any,
        low: Any,
        high: Any,
        marks: Any,
    ) -> Any:
        """out[n] = base − Σ weight · (minuend − subtrahend), of codes at places[model] + start with scales[model]. Models are the base and,
        of each delta, minuend and subtrahend; units[delta] is 1 where weights[delta] is. Sets bits of marks[delta] where a sum differs
        from the model posts[delta]. All but numbers of elements and bytes are addresses: of float64, uint64, uint8, uint16."""
        number = _F64 if like.dtype == types.float64 else _F32

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, count, deltas, places, start, scales, weights, units, posts, out, fresh, low, high, marks = arguments
            found = _Found(builder, number, fresh, low, high)
            total = cgutils.alloca_once(builder, _vector(_F64))

            def scalar(kind: Any, array: Any, index: Any) -> Any:
                return _load(builder, _at(builder, array, index, kind.width // 8 if isinstance(kind, ir.IntType) else 8), kind)

            def model(index: Any, lanes: Any) -> Any:
                place = builder.add(scalar(_I64, places, index), start)
                codes = _codes(builder, kind, _at(builder, place, lanes, _step(kind)))
                if kind == E4M3:
                    found.note(2, _are_nan(builder, codes))
                return builder.fmul(_widened(builder, _numbers(builder, kind, codes), _F64), _splat(builder, scalar(_F64, scales, index)))

            with cgutils.for_range(builder, count, intp=_I64) as loop:
                base = model(_I64(0), loop.index)
                builder.store(base, total)
                with cgutils.for_range(builder, deltas, intp=_I64) as each:
                    y, x = (model(builder.add(builder.mul(each.index, _I64(2)), _I64(k)), loop.index) for k in (1, 2))
                    acc, weight = builder.load(total), _splat(builder, scalar(_F64, weights, each.index))
                    weighted = builder.fsub(acc, builder.fmul(builder.fsub(y, x), weight))
                    unit = builder.icmp_unsigned("!=", scalar(_I8, units, each.index), _I8(0))
                    builder.store(builder.select(unit, _less_difference(builder, acc, y, x), weighted), total)
                _keep(builder, found, builder.load(total), number, [base], out, loop.index)
                kept = builder.load(total)
                if number == _F32:
                    kept = builder.fpext(builder.fptrunc(kept, _vector(_F32)), _vector(_F64))
                with cgutils.for_range(builder, deltas, intp=_I64) as each:
                    other = model(scalar(_I64, posts, each.index), loop.index)
                    bits = builder.bitcast(_differ(builder, kept, other), _I16)
                    mark = _at(builder, marks, each.index, 2)
                    _store(builder, builder.or_(_load(builder, mark, _I16), bits), mark)
            return found.result()

        place, integer = types.uint64, types.int64
        return types.int64(like, integer, integer, place, place, *[place] * 5, types.boolean, place, place, place), code

    return sum_any_row


def _keep(builder: Any, found: _Found, total: Any, number: Any, models: Any, out: Any, index: Any) -> None:
    """Store sums as they are kept, and see to what they are, and from which models they differ."""
    kept = builder.fptrunc(total, _vector(number)) if number != total.type.element else total
    _store(builder, kept, _at(builder, out, index, LANES * (8 if number == _F64 else 4)))
    found.see(kept)
    for which, model in enumerate(models):
        found.note(which, _differ(builder, _widened(builder, kept, total.type.element), model))


def _fma(builder: Any, one: Any, other: Any, third: Any) -> Any:
    return _call(builder, "llvm.fma.v16f64", _vector(_F64), one, other, third)


def _quotient(builder: Any, numbers: Any, scale: Any, inverse: Any) -> Any:
    """As `encode.quotient` has it."""
    if numbers.type.element == _F32:
        return builder.fptrunc(builder.fmul(builder.fpext(numbers, _vector(_F64)), inverse), _vector(_F32))
    near = builder.fmul(numbers, inverse)
    excess = _fma(builder, near, scale, builder.fneg(numbers))
    return _fma(builder, builder.fneg(excess), inverse, near)


def _rounded(builder: Any, kind: int, near: Any) -> Any:
    """Codes as bytes, as `codes` finds them."""
    wide = near.type.element == _F64
    integer, real, fraction, bias = (_I64, _F64, 52, 1023) if wide else (_I32, _F32, 23, 127)
    top = 63 if wide else 31
    if kind == INT4:
        low = builder.select(builder.fcmp_ordered(">", near, _all(real, -8.0)), near, _all(real, -8.0))
        low = builder.select(builder.fcmp_ordered("<", low, _all(real, 7.0)), low, _all(real, 7.0))
        bits = builder.bitcast(builder.fadd(low, _all(real, 1.5 * 2.0**fraction)), _vector(integer))
        return builder.and_(builder.add(builder.trunc(bits, _vector(_I8)), _all(_I8, 8)), _all(_I8, 15))
    kept, least, highest = (
        (3, -6, 0x407C000000000000 if wide else 0x43E00000) if kind == E4M3 else (1, 0, 0x4018000000000000 if wide else 0x40C00000)
    )
    bits = builder.bitcast(near, _vector(integer))
    rest = builder.and_(bits, _all(integer, (1 << top) - 1))
    rest = builder.select(builder.icmp_signed("<", rest, _all(integer, highest)), rest, _all(integer, highest))
    exponent = builder.and_(rest, _all(integer, ((1 << (top - fraction)) - 1) << fraction))
    floor = _all(integer, (bias + least) << fraction)
    unit = builder.add(
        builder.select(builder.icmp_signed(">", exponent, floor), exponent, floor), _all(integer, (fraction - kept) << fraction)
    )
    total = builder.bitcast(builder.fadd(builder.bitcast(rest, _vector(real)), builder.bitcast(unit, _vector(real))), _vector(integer))
    code = builder.trunc(builder.add(total, builder.lshr(total, _all(integer, fraction - kept))), _vector(_I8))
    code = builder.sub(code, _all(_I8, ((bias + fraction - kept + least) << kept) & 0xFF))
    sign = builder.trunc(builder.lshr(bits, _all(integer, top - 7)), _vector(_I8))
    if kind == E4M3:
        return builder.or_(builder.and_(code, _all(_I8, 0x7F)), builder.and_(sign, _all(_I8, 0x80)))
    return builder.or_(builder.and_(code, _all(_I8, 7)), builder.lshr(builder.and_(sign, _all(_I8, 0x80)), _all(_I8, 4)))


def _codes_of(kind: int) -> Any:
    @intrinsic
    def put_row(context: Any, like: Any, count: Any, numbers: Any, scale: Any, inverse: Any, out: Any) -> Any:
        """Codes of 16 · count numbers as those of `like`, in the order of `sum_row`, divided by a scale; all are addresses."""
        number = _F64 if like.dtype == types.float64 else _F32

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, count, numbers, scale, inverse, out = arguments
            divisor, factor = _splat(builder, scale), _splat(builder, inverse)
            with cgutils.for_range(builder, count, intp=_I64) as loop:
                found = _load(builder, _at(builder, numbers, loop.index, LANES * (8 if number == _F64 else 4)), _vector(number))
                codes = _rounded(builder, kind, _quotient(builder, found, divisor, factor))
                if kind != E4M3:
                    low, high = (builder.shuffle_vector(codes, codes, ir.Constant(_vector(_I32, 8), list(range(k, k + 8)))) for k in (0, 8))
                    codes = builder.or_(low, builder.shl(high, _all(_I8, 4, 8)))
                _store(builder, codes, _at(builder, out, loop.index, _step(kind)))
            return context.get_dummy_value()

        place, real = types.uint64, types.float64
        return types.none(like, types.int64, place, real, real, place), code

    return put_row


def _end_of(name: str) -> Any:
    @intrinsic
    def end_of_lanes(context: Any, like: Any, place: Any) -> Any:
        """The least or the largest of sixteen numbers at an address, as float64. They are finite."""
        number, suffix = (_F64, "f64") if like.dtype == types.float64 else (_F32, "f32")

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            end = _call(builder, f"llvm.vector.reduce.{name}.v16{suffix}", number, _load(builder, arguments[1], _vector(number)))
            return builder.fpext(end, _F64) if number == _F32 else end

        return types.float64(like, types.uint64), code

    return end_of_lanes


sum_e4m3, sum_e2m1, sum_int4 = (_sum_of(kind, False) for kind in KINDS)
any_sum_e4m3, any_sum_e2m1, any_sum_int4 = (_any_sum_of(kind) for kind in KINDS)
narrow_sum_e4m3, narrow_sum_e2m1, narrow_sum_int4 = (_sum_of(kind, True) for kind in KINDS)
put_e4m3, put_e2m1, put_int4 = (_codes_of(kind) for kind in KINDS)
least_of_lanes, largest_of_lanes = _end_of("fmin"), _end_of("fmax")
