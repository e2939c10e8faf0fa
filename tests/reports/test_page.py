"""The file of the page: what it holds, what its policy allows, and the libraries in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import vitbench.reports.html as html
from tests.reports.fabricate import ENVIRONMENT, cell, failed, full_run, ok, size
from vitbench.reports.html.page import render_html
from vitbench.reports.json import render_json
from vitbench.reports.model.runs import Run

VENDOR = Path(html.__file__).parent / "vendor"
HOSTILE = "</script><script>window.__xss=1</script>"


def page_of(name: str = "run") -> str:
    return render_html(
        [Run(name=name, records=[ok(cell(), size(cell())), failed(cell("vit_nano"), "oom")], environment=ENVIRONMENT)]
    )


def test_vendored_files_are_those_that_are_listed() -> None:
    listed = [line.split() for line in (VENDOR / "vendor.txt").read_text().splitlines() if not line.startswith("#")]
    assert {file for *_, file, _ in listed} == {path.name for path in VENDOR.glob("*.min.*")}
    for _, _, _, file, digest in listed:
        assert hashlib.sha256((VENDOR / file).read_bytes()).hexdigest() == digest, file
        assert (VENDOR / f"{file.partition('.')[0]}.LICENSE").is_file()


def test_the_wheel_has_the_files_of_the_page() -> None:
    configured = tomllib.loads((Path(html.__file__).parents[3] / "pyproject.toml").read_text())
    # hatch takes all files of a package, unless something is left out or git ignores it
    assert "exclude" not in configured["tool"]["hatch"]["build"]["targets"]["wheel"]
    root = Path(html.__file__).parents[3]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    files = [str(path) for path in Path(html.__file__).parent.rglob("*.*") if "__pycache__" not in str(path)]
    assert len(files) >= 17
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=root, capture_output=True, text=True)
    assert (ignored.returncode, ignored.stdout) == (1, "")


def test_the_policy_allows_just_the_scripts_and_styles_in_the_file() -> None:
    page = page_of()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    for kind in ("script", "style"):
        texts = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert texts
        for text in texts:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"sha256-{digest}" in policy.replace("&#39;", "'")
    assert policy.startswith("default-src &#39;none&#39;;")
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", [HOSTILE, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}"])
def test_names_are_text(name: str) -> None:
    page = page_of(name)
    without_data = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert "<script>window" not in page
    assert "<img src=x" not in without_data
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])
    assert data["title"] == name


def test_nothing_is_asked_of_the_network() -> None:
    page = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", page_of(), flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)


def test_a_run_without_cells_has_a_page() -> None:
    assert "vitbench report" in render_html([Run(name="empty", records=[])])


def test_the_whole_page(golden: Callable[[str, str], None]) -> None:
    """Without scripts, styles and the picture, which have tests of their own."""
    page = re.sub(r"<(style|script)>.*?</\1>", r"<\1></\1>", render_html([full_run()]), flags=re.DOTALL)
    page = re.sub(r"<svg.*?</svg>", "<svg></svg>", page, flags=re.DOTALL)
    page = re.sub(r'(Policy" content=").*?"', r'\1"', page)
    golden("page.html", re.sub(r"(?<=,)\"(?=[a-z]+\":[{\[])", '\n"', page))


def test_the_whole_json(golden: Callable[[str, str], None]) -> None:
    golden("report.json", render_json([full_run()]))
