"""Numbers and texts as a reader sees them."""

from __future__ import annotations

import pytest

from vitbench.reports.format import cell_text, number, percent, telling_line, with_interval, without_paths


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0123456, "0.0123"),
        (5.7166, "5.72"),
        (86.56, "86.6"),
        (1234.5, "1234"),
        (9.999, "10.0"),
        (0, "0"),
        (-2.5, "-2.50"),
    ],
)
def test_three_significant_digits_but_whole_units_in_full(value: float, shown: str) -> None:
    assert number(value) == shown


def test_an_interval_shares_the_decimals_of_its_value() -> None:
    assert with_interval(12.34, 9.87, 15.01) == "12.3 [9.9, 15.0]"
    assert with_interval(12.341, 12.338, 12.344) == "12.34 [12.34, 12.34]"
    assert with_interval(5, 5, 5) == "5.00 [5.00, 5.00]"
    assert with_interval(5, None, None) == "5.00"


def test_signed_percent() -> None:
    assert [percent(x) for x in (-0.139, 0.004, 0, 0.0004, -0.000001)] == ["-13.9", "+0.4", "0.0", "+0.04", "0.00"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("vitbench run --out /home/al/x/run1 --data=/data/cifar", "vitbench run --out …/run1 --data=…/cifar"),
        ('File "/usr/lib/a.py", line 3', 'File "…/a.py", line 3'),
        (r"C:\Users\bob\x.py failed", "…/x.py failed"),
        ("of /home/al and /Users/al", "of ~ and ~"),
        ("~/x/y", "…/y"),
        ("cannot open '/home/My Name/x'", "cannot open '…/x'"),
        ("path:/home/al/x", "path:…/x"),
        ("image/s, 1/2, a / b, ../shared, https://a.org/b/c", "image/s, 1/2, a / b, ../shared, https://a.org/b/c"),
        ("aten::_scaled_dot_product (timm:vit/x)", "aten::_scaled_dot_product (timm:vit/x)"),
    ],
)
def test_absolute_paths_are_cut_down(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_cells_keep_a_markdown_table_whole() -> None:
    assert cell_text("a|b\n<c> `d`") == r"a\|b &lt;c&gt; \`d\`"
    assert len(cell_text("x" * 1000)) == 200


def test_the_line_that_tells() -> None:
    assert telling_line("\nfirst\nsecond") == "first"
    assert telling_line("Traceback (most recent call last):\n  File x\nKeyError: 1\n") == "KeyError: 1"
    assert telling_line(" \n") == ""
