"""Two hundred spoilt bundles, each refused by an error that names the file. The full set: benchmarks/corruption.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.corruption import outcome, prepare, spoil
from benchmarks.damage import ACCIDENTS
from benchmarks.hostility import DESIGNS

BUNDLES = 200


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with each kind of index, none of them spoilt."""
    folder = tmp_path_factory.mktemp("sound")
    prepare(folder)
    return folder


def test_spoilt_bundles_are_refused_by_name(sound: Path) -> None:
    seen: Counter[str] = Counter()
    for number in range(BUNDLES):
        root, damage, pattern = spoil(sound, 2, number)
        what, error = outcome(root, pattern)
        assert what == "refused", f"{number} {damage.__name__}: {what}: {error}"
        seen[damage.__name__] += 1
    assert set(seen) == {damage.__name__ for damage in (*ACCIDENTS, *DESIGNS)}


def test_a_sound_bundle_of_each_kind_is_accepted(sound: Path) -> None:
    """Or the test above would prove nothing."""
    for root in sorted(sound.iterdir()):
        if root.name != "work":
            assert outcome(root, "nothing") == ("accepted", "")
