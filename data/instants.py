"""Instants as a config writes them: ISO-8601 text, days, or a share."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

DAYS = re.compile(r"(\d+(?:\.\d+)?)d")
DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_cut(value: float | str) -> bool:
    """Whether ``global_time`` understands this ``valid`` or ``test``."""
    if isinstance(value, float | int):
        return 0 < value < 1
    try:
        return bool(DAYS.fullmatch(value)) or instant(value) > 0
    except ValueError:
        return False


def instant(text: str) -> int:
    """Microseconds of an ISO-8601 instant; UTC unless it says otherwise."""
    when = datetime.fromisoformat(text)
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def iso(us: int) -> str:
    """An instant in microseconds, as ISO-8601 text."""
    try:
        return (_EPOCH + timedelta(microseconds=us)).isoformat()
    except OverflowError:
        return f"{us} µs"
