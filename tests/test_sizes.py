"""Sizes, rates and durations, as people write and read them."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paramdelta_dist.sizes import format_memory, format_seconds, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("1", 1), ("1B", 1), ("5GB", 5 * 10**9), ("5 GB", 5 * 10**9), (" 5gb ", 5 * 10**9), ("5G", 5 * 10**9), ("2GiB", 2 << 30),
        ("512MiB", 512 << 20), ("512mib", 512 << 20), ("3KB", 3000), ("3k", 3000), ("3KiB", 3072), ("1TB", 10**12), ("1TiB", 1 << 40),
        ("1.5GB", 1_500_000_000), ("0.1GB", 100_000_000), ("1.001KB", 1001), ("4.35kB", 4350), ("0.29GB", 290_000_000), ("1.9B", 1),
        (0, 0), (7, 7), (5 * 10**9, 5 * 10**9), ("999999999999999999", 999999999999999999),
    ],
)  # fmt: skip
def test_a_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "GB", "5XB", "5 G B", "-5GB", "+5GB", "5,5GB", "5e9", "5.GB", ".5GB", "0x10", "5GBs", "five", "٥GB", "1_000", "inf", "nan",
     "9" * 19, "1." + "9" * 10, "5GB\0", True, False, None, [5]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size; write a number with a unit, such as 5GB or 512MiB"):
        parse_size(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text):
    with contextlib.suppress(ValueError):
        assert parse_size(text) >= 0


@given(st.integers(0, 10**9), st.sampled_from(["", "B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]))
def test_whole_numbers_are_exact(number, unit):
    one = parse_size(f"1{unit}")
    assert parse_size(f"{number}{unit}") == parse_size(f"{number}.0 {unit.lower()}") == number * one


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1 kB"), (1005, "1 kB"), (16_060_000_000, "16.1 GB"), (141 * 10**9, "141 GB"),
        (8 * 10**12, "8 TB"), (1234 * 10**12, "1234 TB"), (999_400, "999 kB"), (999_500, "1 MB"), (999.6, "1 kB"), (-1500, "-1.5 kB"),
    ],
)  # fmt: skip
def test_sizes_are_shown_with_three_digits(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536 << 20, "1.5 GiB"), (384 << 20, "384 MiB"), (1 << 40, "1 TiB"),
        ((1 << 20) - 1, "1 MiB"), (5000 << 40, "5000 TiB"),
    ],
)  # fmt: skip
def test_memory_is_shown_in_binary_units(size, text):
    assert format_memory(size) == text


@given(st.integers(0, 10**16))
@example(1070)  # 1.04 KiB, which is 1064 bytes
def test_a_shown_size_reads_back_within_half_a_percent(size):
    for shown in (format_size(size), format_memory(size)):
        assert parse_size(shown) == pytest.approx(size, rel=0, abs=0.005 * size + 1)  # 1: parts of a byte are left out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (7.34, "7.3 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (60, "1 min 00 s"), (252, "4 min 12 s"),
        (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min"), (360_000, "100 h 00 min"),
    ],
)  # fmt: skip
def test_durations_are_shown(seconds, text):
    assert format_seconds(seconds) == text
