"""A link that moves to the newest bundle, and a handle that follows it."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from towers.index.handle import RetrieverHandle
from towers.index.manifest import bundle_id
from towers.index.swap_report import SwapReport


class Watch:
    """Swaps a handle whenever a path names another bundle.

        with Watch(handle, "runs/market/latest/bundle", every=5.0):
            …

    A bundle that was refused is not tried again until the path names another one, or its seal has changed.

    Args:
        handle: what is swapped.
        path: a link to a bundle, or a path through one.
        every: seconds between two looks.
    """

    def __init__(self, handle: RetrieverHandle, path: str | Path, *, every: float = 5.0) -> None:
        self._handle, self._path, self._every = handle, Path(path), every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {self._path}", daemon=True)
        self._refused: tuple[Path, str] | None = None

    def look(self) -> SwapReport | None:
        """Swap if the path names another bundle than the one that answers; None: it does not, or names none."""
        named = self._named()
        if named is None or named == self._refused or named[1] == self._handle.bundle_id:
            return None
        report = self._handle.swap(named[0])
        self._refused = None if report.accepted else named
        return report

    def _named(self) -> tuple[Path, str] | None:
        """The folder and its id; None while there is none, as between the removal of a link and the next."""
        with suppress(OSError):
            folder = self._path.resolve(strict=True)
            return folder, bundle_id(folder)
        return None

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            self.look()

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; a swap that has begun is finished first."""
        self._stopped.set()
        self._thread.join()
