"""The examples in docstrings, run."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHOWN = [
    p.relative_to(ROOT)
    for room in ("towers", "data", "pipeline")
    for p in sorted((ROOT / room).rglob("*.py"))
    if any(">>> " in line and "+SKIP" not in line for line in p.read_text().splitlines())
]


@pytest.mark.parametrize("path", SHOWN, ids=str)
def test_the_examples_are_true(path: Path) -> None:
    result = doctest.testmod(importlib.import_module(".".join(path.with_suffix("").parts)))
    assert result.attempted > 0
    assert result.failed == 0
