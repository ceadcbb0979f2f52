"""A retriever that can be exchanged while it is asked.

    handle = RetrieverHandle.open("bundles/monday")
    handle.recommend("m0000042", k=10)            # as a Retriever; Results.bundle says which bundle answered
    print(handle.swap("bundles/tuesday"))         # verified, replayed, warmed, then in its place; or refused, and why

A ``Retriever`` never changes, so that exchanging it is exchanging one reference. A call takes the reference once and
keeps it to its end: it is answered by exactly one bundle, whatever is swapped meanwhile, and never waits. When the last
call that began on the old bundle has ended, nothing holds it any more, and its memory is free.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from towers.errors import BundleError
from towers.index.retriever import Retriever
from towers.index.swap_report import SwapReport, changes, warnings
from towers.index.warming import warm

P = ParamSpec("P")
T = TypeVar("T")
Opener = Callable[[Path], Retriever]
_KEPT = 100  # reports


def _asked(method: Callable[Concatenate[Retriever, P], T]) -> Callable[Concatenate[RetrieverHandle, P], T]:
    """The same method, of whatever retriever there is when it is called."""

    @functools.wraps(method)
    def ask(self: RetrieverHandle, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answer: T = getattr(self.current, method.__name__)(*args, **kwargs)  # as subclasses have it
        return answer

    return ask


class RetrieverHandle:
    """One place that answers, whichever bundle is behind it. Safe in threads; queries never wait for a swap.

    Args:
        opener: what opens a folder. To pass options, or a live store that outlives every bundle:
            ``partial(Retriever.open, threads=1)``.
        warm_queries: known users who are asked before a bundle takes over.

    It answers after the first ``swap``; ``RetrieverHandle.open`` does both.
    """

    def __init__(self, opener: Opener = Retriever.open, *, warm_queries: int = 32) -> None:
        self._opener, self._warm_queries = opener, warm_queries
        self._current: Retriever | None = None
        self._one_at_a_time = threading.Lock()
        self._reports: deque[SwapReport] = deque(maxlen=_KEPT)

    @classmethod
    def open(cls, path: str | Path, *, opener: Opener = Retriever.open, warm_queries: int = 32) -> RetrieverHandle:
        """A handle that answers from a bundle.

        Raises:
            BundleError: the bundle was refused; there is none before it that could go on.
        """
        handle = cls(opener, warm_queries=warm_queries)
        report = handle.swap(path)
        if not report.accepted:
            raise BundleError(report.reason)
        return handle

    @property
    def current(self) -> Retriever:
        """The retriever that answers now. Keep it for several calls that must agree; let it go after them.

        Raises:
            BundleError: no bundle has been accepted yet.
        """
        if (current := self._current) is None:
            raise BundleError("no bundle has been accepted yet; see RetrieverHandle.reports, and swap one in")
        return current

    @property
    def bundle_id(self) -> str:
        """Id of the bundle that answers now, as in ``Results.bundle``; empty if none has been accepted yet."""
        return "" if (current := self._current) is None else current.bundle.id

    @property
    def reports(self) -> tuple[SwapReport, ...]:
        """The last swaps, the newest last."""
        return tuple(self._reports)

    def swap(self, path: str | Path) -> SwapReport:
        """Open, verify, replay and warm a bundle; then let it answer. If any of it fails, all stays as it is.

        Swaps wait for one another, queries for none. A link (``latest``) is followed once, at the beginning.

        Args:
            path: the bundle's folder.

        Returns:
            What came of it; also kept in ``reports``. A bundle that is refused raises nothing.
        """
        with self._one_at_a_time:
            report = self._attempt(Path(path).resolve())
            self._reports.append(report)
        return report

    def _attempt(self, path: Path) -> SwapReport:
        old, begun = self._current, time.perf_counter()
        told: dict[str, Any] = {"path": path, "previous": self.bundle_id}
        try:
            new = self._opener(path)
            opened = time.perf_counter()
            warm(new, self._warm_queries)
        except Exception as e:  # whatever it is, the old bundle goes on answering
            return SwapReport(accepted=False, reason=f"{type(e).__name__}: {e}", **told)
        told["seconds"] = {"open": opened - begun, "warm": time.perf_counter() - opened}
        if old is not None:
            told |= {"changes": changes(old.bundle, new.bundle), "warnings": warnings(old.bundle, new.bundle)}
        self._current = new
        return SwapReport(accepted=True, bundle=new.bundle.id, **told)

    recommend = _asked(Retriever.recommend)
    search = _asked(Retriever.search)
    similar = _asked(Retriever.similar)
    match = _asked(Retriever.match)
    vector = _asked(Retriever.vector)
    attributes = _asked(Retriever.attributes)
    user_attributes = _asked(Retriever.user_attributes)
    upsert = _asked(Retriever.upsert)
    delete = _asked(Retriever.delete)
    expire = _asked(Retriever.expire)
    __len__ = _asked(Retriever.__len__)
    __contains__ = _asked(Retriever.__contains__)
