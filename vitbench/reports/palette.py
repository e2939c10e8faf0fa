"""Colours and markers of plots and pages: six for what is singled out, a grey for all else.

Each colour has a contrast of at least 4.5:1 with its background, so that text may have it, too (WCAG 2.2, 1.4.3; marks
take 3:1, 1.4.11). Any two differ by five just noticeable differences in OKLab, with each of the three dichromacies, too
(``tests/reports/test_palette.py`` has the formulas). ``MARKERS`` say the same without any colour.
"""

from __future__ import annotations

#: The pages' backgrounds that the colours are for.
BACKGROUND_LIGHT, BACKGROUND_DARK = "#FFFFFF", "#13171F"

#: Blue, orange, green, purple, olive, near black.
LIGHT: tuple[str, ...] = ("#1A72E8", "#B45F00", "#20655C", "#93009A", "#5C4A00", "#0A2230")
#: Light blue, orange, green, pink, yellow, white.
DARK: tuple[str, ...] = ("#0AC7FF", "#F57D18", "#2AB577", "#EC96BF", "#E6DA3A", "#FFFFFF")
GREY_LIGHT, GREY_DARK = "#70747B", "#808892"

#: Of each colour: the marker of matplotlib, and the symbol of d3 that looks like it.
MARKERS: tuple[tuple[str, str], ...] = (
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle"),
    ("D", "diamond"),
    ("*", "star"),
    ("P", "cross"),
)
