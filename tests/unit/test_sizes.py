"""Sizes as people write them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from vmm.errors import ConfigError
from vmm.guest.abi import PAGE_SIZE
from vmm.sizes import format_size, pages_for, parse_limit, parse_size

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MOST = (1 << 63) - 1

sizes = st.integers(1, MOST)


@settings(max_examples=200, deadline=None)
@given(sizes)
@example((1 << 53) + 1)  # more than a float holds
@example(MOST)
def test_a_number_of_bytes_is_taken_exactly(size: int) -> None:
    assert parse_size(size) == parse_size(str(size)) == parse_size(f"{size}B") == size


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1023), st.sampled_from("KMGT"), st.sampled_from(["", "B", "iB"]))
def test_a_unit_is_a_power_of_1024_however_it_is_written(
    number: int, unit: str, suffix: str
) -> None:
    size = number * UNITS[unit]
    for text in (f"{number}{unit}{suffix}", f" {number} {unit}{suffix} ".lower()):
        assert parse_size(text) == size


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1023), st.sampled_from(sorted(UNITS)))
def test_what_is_shown_can_be_typed_in_again(number: int, unit: str) -> None:
    size = number * UNITS[unit]
    assert parse_size(format_size(size)) == size


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12) | st.from_regex(r"[0-9. ]{0,6}[KMGTBi]{0,3}", fullmatch=True))
@example("9" * 5000)
@example("1." + "0" * 5000)
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    try:
        assert 1 <= parse_size(text) <= MOST
    except ConfigError as error:
        assert repr(text) in str(error)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64K", 65536), ("1.5G", 3 << 29), ("0.5K", 512), ("4096", 4096), ("12 KiB", 12288)],
)
def test_examples(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "bad",
    [
        *("", "K", "-1", "1Q", "1KK", "1e3", "0x10", "1,5G", "one", "1.G", ".5G", "nan", "inf"),
        *(
            "4\N{KELVIN SIGN}",
            "\N{ARABIC-INDIC DIGIT THREE}K",
            "4\N{LATIN SMALL LETTER DOTLESS I}B",
        ),
        True,
    ],
)
def test_what_is_no_size_is_refused_with_an_example(bad: int | str) -> None:
    with pytest.raises(ConfigError, match="is not a size: give bytes, or for example 64K"):
        parse_size(bad)


@pytest.mark.parametrize("bad", [0, -1, "0", "0K", "0.5", "0.0001K"])
def test_less_than_a_byte_or_a_part_of_one_is_refused(bad: int | str) -> None:
    with pytest.raises(ConfigError, match=r"window .* is not a positive whole number of bytes"):
        parse_size(bad, "window")


@pytest.mark.parametrize("bad", [MOST + 1, 10**400, "8388608T", "99999999999999999999T"])
def test_more_than_an_address_space_is_refused(bad: int | str) -> None:
    with pytest.raises(ConfigError, match=r"pool .* is more than any address space holds"):
        parse_size(bad, "pool")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 B"),
        (4096, "4096 B"),
        (10239, "10239 B"),
        (10240, "10 KiB"),
        (65536, "64 KiB"),
        (3 << 29, "1.5 GiB"),
        (5 << 40, "5 TiB"),
        (1000000, "976.6 KiB"),
    ],
)
def test_sizes_are_shown_in_four_digits(size: int, text: str) -> None:
    assert format_size(size) == text


def test_bytes_need_as_many_pages_as_hold_them() -> None:
    assert [pages_for(size) for size in (0, 1, PAGE_SIZE, PAGE_SIZE + 1)] == [0, 1, 1, 2]


def test_a_limit_may_also_be_0() -> None:
    assert parse_limit(0) == parse_limit("0") == 0
    assert parse_limit("256K") == parse_limit(256 << 10) == 256 << 10
    for wrong in (-1, False, "", "-1", "0.5", "much"):
        with pytest.raises(ConfigError, match="copies"):
            parse_limit(wrong, "copies")
