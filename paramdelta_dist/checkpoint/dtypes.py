"""Every dtype a safetensors file can hold, in one table; what a merge may do with each. Knows nothing of torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The kind of numbers that a dtype holds, which decides what a merge does with them."""

    FLOAT = "float"
    """Arithmetic works on the values: merged."""
    EXACT = "exact"
    """Integers and booleans: counters, masks, positions. Copied, and all models must agree."""
    QUANTIZED = "quantized"
    """Codes that mean something only with a scale that lies elsewhere: refused."""
    COMPLEX = "complex"
    """Refused: no model is known that keeps parameters in it."""


@dataclass(frozen=True, slots=True)
class DType:
    name: str
    """As the safetensors header spells it."""
    bits: int
    """Size of one element in bits; below 8 for packed formats."""
    kind: Kind
    torch: str
    """Attribute of the torch module."""
    aliases: tuple[str, ...] = ()
    """Other spellings people use in a recipe."""

    @property
    def itemsize(self) -> int:
        """Bytes of one element. Raises ValueError for packed formats, which have none."""
        if self.bits % 8:
            raise ValueError(f"{self.name} packs several elements into a byte")
        return self.bits // 8

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor; -1 when a packed format does not fill its last byte."""
        bits = self.bits
        for extent in shape:
            bits *= extent
        return -1 if bits % 8 else bits // 8


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("BOOL", 8, Kind.EXACT, "bool"),
        DType("U8", 8, Kind.EXACT, "uint8"),
        DType("I8", 8, Kind.EXACT, "int8"),
        DType("U16", 16, Kind.EXACT, "uint16"),
        DType("I16", 16, Kind.EXACT, "int16"),
        DType("U32", 32, Kind.EXACT, "uint32"),
        DType("I32", 32, Kind.EXACT, "int32"),
        DType("U64", 64, Kind.EXACT, "uint64"),
        DType("I64", 64, Kind.EXACT, "int64"),
        DType("F16", 16, Kind.FLOAT, "float16", ("float16", "fp16", "half")),
        DType("BF16", 16, Kind.FLOAT, "bfloat16", ("bfloat16", "bf16")),
        DType("F32", 32, Kind.FLOAT, "float32", ("float32", "fp32", "float")),
        DType("F64", 64, Kind.FLOAT, "float64", ("float64", "fp64", "double")),
        DType("F8_E4M3", 8, Kind.QUANTIZED, "float8_e4m3fn"),
        DType("F8_E5M2", 8, Kind.QUANTIZED, "float8_e5m2"),
        DType("F8_E4M3FNUZ", 8, Kind.QUANTIZED, "float8_e4m3fnuz"),
        DType("F8_E5M2FNUZ", 8, Kind.QUANTIZED, "float8_e5m2fnuz"),
        DType("F8_E8M0", 8, Kind.QUANTIZED, "float8_e8m0fnu"),
        DType("F6_E2M3", 6, Kind.QUANTIZED, ""),
        DType("F6_E3M2", 6, Kind.QUANTIZED, ""),
        DType("F4", 4, Kind.QUANTIZED, "float4_e2m1fn_x2"),
        DType("C64", 64, Kind.COMPLEX, "complex64"),
    )
}

ITEMSIZES = {dtype.name: dtype.bits // 8 for dtype in DTYPES.values() if dtype.bits % 8 == 0}
"""Bytes of one element, of the dtypes whose elements have whole bytes."""
