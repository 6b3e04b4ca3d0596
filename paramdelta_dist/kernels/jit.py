"""Compiling functions for the processor at hand, on first use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

log = logging.getLogger(__name__)


class _Convenience(FunctionCache):  # type: ignore[misc]
    """What was compiled, on disk: it saves seconds, and its absence is never an error. A full disk, a folder that is gone or may
    not be written to, a file that a power cut left empty: then it is compiled again."""

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:  # numba has it around every load and save, against those of Windows
        try:
            yield
        except Exception as error:
            log.debug("compiled functions are not kept in %s: %s", self.cache_path, error)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: compiled by numba when first called, to run without Python's lock; kept on disk where there is a place for that."""

    def compile_it(function: Callable[..., Any]) -> Any:
        made = numba.njit(nogil=True, **options)(function)
        with suppress(RuntimeError, OSError):  # neither the package's folder nor the user's can be written to
            made._cache = _Convenience(made.py_func)
        return made

    return compile_it


@intrinsic  # type: ignore[untyped-decorator]
def pointer(context: Any, address: Any) -> Any:
    """In compiled code: an address as what numba.carray takes. Read-only arrays would be other types to compile for; addresses are not."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), code


@intrinsic  # type: ignore[untyped-decorator]
def fused(context: Any, one: Any, other: Any, third: Any) -> Any:
    """In compiled code: one · other + third of float64, rounded once. Everywhere else multiplication and addition round each by itself."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), code


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(context: Any, address: Any) -> Any:
    """In compiled code: have the line of the cache at an address brought up to the core, if there is one; no more than a hint."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, nothing = ir.IntType(32), ir.VoidType()
        kind = ir.FunctionType(nothing, [cgutils.voidptr_t, number, number, number])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        builder.call(hint, [builder.inttoptr(arguments[0], cgutils.voidptr_t), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.none(address), code


def _array(context: Any, builder: Any, kind: Any, address: Any, count: Any) -> Any:
    array = context.make_array(kind)(context, builder)
    size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    place = builder.inttoptr(address, array.data.type)
    populate_array(array, data=place, shape=[count], strides=[size], itemsize=size, meminfo=None)
    return array._getvalue()


@intrinsic  # type: ignore[untyped-decorator]
def array_at(context: Any, address: Any, count: Any, like: Any) -> Any:
    """In compiled code: an array of as many elements at an address, of the type of those of `like`. Nobody is said to own it."""
    kind = types.Array(like.dtype, 1, "C")

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _array(context, builder, kind, arguments[0], arguments[1])

    return kind(types.uint64, types.intp, like), code


@intrinsic  # type: ignore[untyped-decorator]
def bytes_at(context: Any, address: Any) -> Any:
    """In compiled code: an array of all bytes from an address on."""
    kind = types.Array(types.uint8, 1, "C")

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _array(context, builder, kind, arguments[0], context.get_constant(types.intp, 1 << 62))

    return kind(types.uint64), code
