"""An index over item attributes: for each value or range of values, the rows that have it, as a bitmap.

``N`` rows, ``V`` distinct values of a column.

A column is kept as its distinct values in order, and its rows in the order of their values, 4 bytes for each. A value
is a slice of those rows. A range is the difference of two prefixes, and 64 prefixes lie ready as bitmaps (the range
encoding of Chan and Ioannidis, "Bitmap Index Design and Evaluation", 1998, over bins of equal size), so that
``salary >= 50000`` over a million items costs what a few thousand rows cost.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, Literal
from weakref import ref

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towers.errors import ConfigError
from towers.index.attribute_keys import Key, comparable, distinct, is_list, key, sortable
from towers.index.bitmaps import Rows, rows_where, to_rows

_PREFIXES = 64
_KEPT = 32  # ranges of a column that stay at hand: a popular value, or "posted by now" until the next job is posted


class Column:
    """The rows of each value of one attribute. Never changes: safe in threads.

    Args:
        name: of the attribute, said in errors.
        values: ``[N]``, possibly lists.

    Attributes:
        kind: Arrow type of a value (of an element, where there are lists).
        valid: rows that have a value: not null, not NaN.
    """

    valid: Rows

    def __init__(self, name: str, values: pa.Array) -> None:
        self.name = name
        lists = is_list(values.type)
        self.kind = values.type.value_type if lists else values.type
        if lists:
            parents = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
            self.valid = rows_where(pc.is_valid(values).to_numpy(zero_copy_only=False))
            flat = comparable(pc.list_flatten(values))
        else:
            parents, flat = np.arange(len(values)), comparable(values)
        there = pc.is_valid(flat).to_numpy(zero_copy_only=False)
        parents = parents[there]
        if not lists:
            self.valid = to_rows(parents)
        self._keys: Any = np.zeros(0)
        positions, self._offsets = np.zeros(0, np.int64), np.zeros(1, np.int64)
        if sortable(flat.type):
            self._keys, positions, self._offsets = distinct(flat.drop_null())
        self._rows = parents[positions].astype(np.uint32)
        self._text = isinstance(self._keys, pa.Array)
        self._whole = not self._text and self._keys.dtype == np.int64
        me = ref(self)  # not self: a cycle would hold the rows of a bundle that has been swapped out until gc comes by

        def find(first: int, last: int) -> Rows:
            column: Any = me()
            found: Rows = column._find(first, last)
            return found

        self._between: Callable[[int, int], Rows] = lru_cache(_KEPT)(find)

    def key(self, value: Any) -> Key:
        """The value as what ``where`` compares.

        Raises:
            ConfigError: it cannot be compared with this column.
        """
        return key(self.kind, value, self.name)

    def where(self, op: str, key: Key) -> Rows:
        """The rows whose value (one of whose values) is ``==``, ``<``, ``<=``, ``>`` or ``>=`` the key.

        Lists know ``==`` only: the rows of a range of values would overlap.
        """
        low = self._place(key, "left") if op != ">" else 0
        high = self._place(key, "right") if op in ("==", "<=", ">") else 0
        all_ = len(self._keys)
        bounds = {"==": (low, high), "<": (0, low), "<=": (0, high), ">": (high, all_), ">=": (low, all_)}
        return self._between(*bounds[op])

    def _place(self, key: Key, side: Literal["left", "right"]) -> int:
        """Keys below ``key``, on the right those that are equal too."""
        if self._whole and isinstance(key, int) and abs(key) < 1 << 63:
            return int(np.searchsorted(self._keys, np.int64(key), side))  # a tenth of the time of asking Python
        bisect = bisect_left if side == "left" else bisect_right
        return bisect(self._keys, key, key=self._plain)

    def _plain(self, key: Any) -> Key:
        """A key as Python has it; numpy would round an integer to compare it with a float."""
        plain: Key = key.as_py() if self._text else key.item()
        return plain

    def _find(self, first: int, last: int) -> Rows:
        """Rows that have one of the keys ``first … last - 1``."""
        start, end = int(self._offsets[first]), int(self._offsets[last])
        if last - first <= 1:
            return to_rows(self._rows[start:end])  # ascending as they are
        if end - start <= self._step:
            return to_rows(np.sort(self._rows[start:end]))
        return self._prefix(end) - self._prefix(start)

    @property
    def _step(self) -> int:
        return max(1024, len(self._rows) // _PREFIXES)

    def _prefix(self, end: int) -> Rows:
        ready, rest = divmod(end, self._step)
        return self._prefixes[ready] | to_rows(np.sort(self._rows[end - rest : end]))

    @cached_property
    def _prefixes(self) -> list[Rows]:
        """The first 0, 1, 2, … times ``_step`` rows in the order of their values; made for the first range."""
        out = [Rows()]
        for start in range(0, len(self._rows) - self._step + 1, self._step):
            out.append(out[-1] | to_rows(np.sort(self._rows[start : start + self._step])))
        return out


class AttributeIndex:
    """All attributes of a catalogue. Each column is indexed when it is first asked for (.2 s for a million rows).

    Args:
        table: ``[N]`` attributes.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._columns: dict[str, Column] = {}
        self.everything = Rows(range(table.num_rows))

    def __len__(self) -> int:
        """``N``."""
        return int(self._table.num_rows)

    def __contains__(self, name: object) -> bool:
        """Whether there is such an attribute."""
        return name in self._table.column_names

    @property
    def names(self) -> tuple[str, ...]:
        """Attributes that have been asked for, and are indexed."""
        return tuple(self._columns)

    def column(self, name: str, *, lists: bool | None = False) -> Column:
        """One attribute.

        Args:
            name: of the column.
            lists: whether it must hold lists; None: it may.

        Raises:
            ConfigError: there is no such attribute, or it is of the other sort.
        """
        if name not in self:
            raise ConfigError(
                f"filter: no attribute {name!r}; there are {', '.join(self._table.column_names) or 'none'}"
            )
        kind = self._table.schema.field(name).type
        if lists and not is_list(kind):
            raise ConfigError(f"filter: {name} is {kind}, not a list; write {name} == value")
        if lists is False and is_list(kind):
            raise ConfigError(f"filter: {name} is a list; write 'value' in {name}, or .contains(value)")
        if name not in self._columns:
            self._columns[name] = Column(name, whole(self._table[name]))
        return self._columns[name]


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
