"""The two kinds of error a user can cure: a wrong setting and wrong data.

Both say what was found, what was expected, where, and what to do about it. Everything else that is
raised is a defect of ours.
"""

from __future__ import annotations


class TowersError(Exception):
    """Base of the errors whose message is written for the user."""


class ConfigError(TowersError):
    """A setting, or a combination of settings, cannot work. The message names the cure."""


class DataError(TowersError):
    """Data are not what the configuration says they are.

    Args:
        found: what is there, and what was expected instead.
        where: file, column, row, field: the more of them, the better.
        cure: what the reader of the message can do.
    """

    def __init__(self, found: str, *, where: str = "", cure: str = "") -> None:
        self.found, self.where, self.cure = found, where, cure
        super().__init__("\n  ".join(p for p in (found, where and f"where: {where}", cure and f"cure: {cure}") if p))


class BundleError(TowersError):
    """An exported bundle is damaged, incomplete or hostile. The message names the file."""
