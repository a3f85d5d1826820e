"""Bytes as people write and read them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeff.errors import EdgeffError
from edgeff.units import format_bytes, parse_bytes

FACTORS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

counts = st.one_of(st.integers(0, 2**13), st.integers(0, 2**45))


@settings(deadline=None)
@given(
    whole=st.integers(0, 2**60),
    fraction=st.none() | st.text("0123456789", min_size=1, max_size=25),
    unit=st.sampled_from(sorted(FACTORS)),
    blanks=st.tuples(*[st.sampled_from(["", " ", "\t "])] * 3),
    spelling=st.sampled_from([str, str.lower, str.upper]),
)
@example(whole=9007199254740993, fraction="5", unit="GiB", blanks=("", "", ""), spelling=str)
def test_a_number_with_a_unit_is_read_exactly_and_rounded_down(whole, fraction, unit, blanks, spelling):
    number = str(whole) if fraction is None else f"{whole}.{fraction}"
    text = f"{blanks[0]}{number}{blanks[1]}{spelling(unit)}{blanks[2]}"
    assert parse_bytes(text) == int(Fraction(number) * FACTORS[unit])


@pytest.mark.parametrize(
    "text", ["", " ", "MiB", "-1", "+1", "1,000", "1e6", ".5", "5.", "1 2", "1.2.3", "1 TiB", "32M", "32 MiB!", "nan"]
)
def test_any_other_text_is_refused_with_an_example(text):
    with pytest.raises(EdgeffError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"`{text}` is not a number of bytes"
    assert caught.value.hint == "write for example `32MiB`, `512KiB` or `33554432`"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024 + 52, "10.1 KiB"),
        (99 * 1024 + 1000, "100 KiB"),
        (1023 * 1024, "1023 KiB"),
        (2**20 - 1, "1 MiB"),  # not 1024 KiB
        (2**20 - 513, "1023 KiB"),
        (2**30 - 1, "1 GiB"),
        (5 * 2**40, "5120 GiB"),
        (-1536, "-1.5 KiB"),
        (-1, "-1 B"),
    ],
)
def test_bytes_are_written_in_the_largest_unit_with_three_digits(count, text):
    assert format_bytes(count) == text


@settings(deadline=None)
@given(count=counts)
def test_what_is_written_is_within_half_a_percent_of_what_was_meant(count):
    assert abs(parse_bytes(format_bytes(count)) - count) <= count * 0.005 + 1
    assert format_bytes(-count) == ("0 B" if count == 0 else f"-{format_bytes(count)}")


@settings(deadline=None)
@given(one=counts, other=counts)
def test_more_bytes_are_never_written_as_fewer(one, other):
    less, more = sorted((one, other))
    assert parse_bytes(format_bytes(less)) <= parse_bytes(format_bytes(more))


@settings(deadline=None)
@given(count=counts)
def test_no_number_ends_in_a_nought_or_a_point_behind_the_point(count):
    number = format_bytes(count).split()[0]
    assert "." not in number or number[-1] not in ".0"
    assert len(number.replace(".", "")) <= 4 or count >= 10_000 * 2**30
