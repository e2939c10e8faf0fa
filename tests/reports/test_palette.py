"""The palettes against the formulas of others: contrast by WCAG, colour deficiencies by Machado et al., OKLab."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vitbench.reports import palette

#: What another sees of linear RGB: Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of
#: Color Vision Deficiency", severity 1.0 (matrices of the authors' page).
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
#: Linear sRGB to OKLab: Ottosson 2020, "A perceptual color space for image processing".
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
#: CSS Color 4 takes 0.02 in OKLab as just noticeable.
JUST_NOTICEABLE = 0.02
THEMES = {
    "light": (palette.LIGHT, palette.GREY_LIGHT, palette.BACKGROUND_LIGHT),
    "dark": (palette.DARK, palette.GREY_DARK, palette.BACKGROUND_DARK),
}
themes = pytest.mark.parametrize(("colours", "grey", "background"), THEMES.values(), ids=THEMES)


def linear(colour: str) -> np.ndarray:
    """IEC 61966-2-1."""
    values = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, "contrast ratio"."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def distance(one: str, other: str, vision: str) -> float:
    labs = [
        TO_LAB @ np.cbrt(TO_CONES @ np.clip(np.array(VISION[vision]) @ linear(colour), 0, 1)) for colour in (one, other)
    ]
    return float(np.linalg.norm(labs[0] - labs[1]))


def test_the_formulas_give_what_others_publish() -> None:
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#767676", "#FFFFFF") == pytest.approx(4.54, abs=0.005)  # WebAIM's lightest grey that passes
    assert distance("#FFFFFF", "#000000", "normal") == pytest.approx(1, abs=1e-4)
    # red and green of one lightness differ less for a deuteranope
    assert distance("#D00000", "#008000", "deuteranopia") < distance("#D00000", "#008000", "normal") / 2


def test_the_old_colours_miss_what_marks_take() -> None:
    assert contrast("#56B4E9", "#FFFFFF") < 3
    assert contrast("#E69F00", "#FFFFFF") < 3


@themes
def test_text_may_have_each_colour(colours: tuple[str, ...], grey: str, background: str) -> None:
    assert {one: contrast(one, background) for one in (*colours, grey) if contrast(one, background) < 4.5} == {}


@themes
@pytest.mark.parametrize("vision", VISION)
def test_any_two_colours_can_be_told_apart(colours: tuple[str, ...], grey: str, background: str, vision: str) -> None:
    pairs = {pair: distance(*pair, vision) for pair in itertools.combinations(colours, 2)}
    assert {pair: value for pair, value in pairs.items() if value < 5 * JUST_NOTICEABLE} == {}
    greys = {one: distance(one, grey, vision) for one in colours}
    assert {one: value for one, value in greys.items() if value < 3 * JUST_NOTICEABLE} == {}


def test_shapes_say_what_colours_say() -> None:
    assert len(palette.LIGHT) == len(palette.DARK) == len(palette.MARKERS)
    for which in zip(*palette.MARKERS, strict=True):
        assert len(set(which)) == len(palette.MARKERS)
