"""How long arrays must be, as C sources say it."""

from __future__ import annotations

import array

import pytest

from vmm.errors import ConfigError
from vmm.sandbox.lengths import Length, declared


@pytest.mark.parametrize(
    ("source", "lengths"),
    [
        ("void f(double v[16]) {}", {"v": "(16)"}),
        ("void f(int n, double v[static n]) {}", {"v": "(n)"}),
        ("int f(int w, int h, uint8_t p[h][w * 3])\n{ return 0; }", {"p": "(h) * (w * 3)"}),
        ("void f(const char *restrict s, int a[const 4], int b[])", {"a": "(4)"}),
        ("/* f(int a[9]) */ // f(int a[8])\nvoid f(int a[/* seven */ 7]) {}", {"a": "(7)"}),
        ('char *s = "f(int a[3])"; void f(int a[2]);', {"a": "(2)"}),
        ("#define f(a) g(a[5])\nvoid f(int a[2], int n);", {"a": "(2)"}),
        ("void g(void) { f(x[1]); }\nvoid f(int a[6]);", {"a": "(6)"}),
    ],
)
def test_array_parameters_have_the_lengths_that_the_source_declares(
    source: str, lengths: dict[str, str]
) -> None:
    assert {name: length.text for name, length in declared(source, "f").items()} == lengths


@pytest.mark.parametrize(
    "source",
    [
        "",
        "void g(int a[4]);",
        "void f(int a[]);",
        "void f(int a[MAX]);",
        "void f(int a[sizeof(int)]);",
        "void f(int *a, int n);",
        "void f(int a[4",
        "void f(int a[*], int n);",
    ],
)
def test_what_cannot_be_known_is_not_checked(source: str) -> None:
    assert declared(source, "f") == {}


def test_a_length_is_worked_out_from_the_other_arguments() -> None:
    assert Length("3 * width * height").of({"width": 4, "height": 5}) == 60
    assert Length("(n + 7) / 8").of({"n": 9}) == 2
    assert Length("n").of({"n": 2.5}) is None  # no number of items
    assert Length("n").of({}) is None
    assert Length("1 / n").of({"n": 0}) is None
    assert Length("n * n * n").of({"n": 1 << 40}) == 1 << 120  # more than any array has
    assert Length("n").of({"n": array.array("i", [1])}) is None


@pytest.mark.parametrize(
    "text", ["", "n +", "f(n)", "n ** n", "n.real", "[n]", "'n'", "1.5", "a < b"]
)
def test_a_length_is_numbers_and_parameters_and_nothing_that_runs(text: str) -> None:
    with pytest.raises(ConfigError, match="is no length"):
        Length(text)


def test_a_hostile_source_costs_little() -> None:
    assert declared("f(" * 100_000 + "[" * 100_000, "f") == {}
    with pytest.raises(ConfigError):
        Length("(" * 100_000)
