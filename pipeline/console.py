"""How the verbs speak: progress bars on long work, errors without a traceback, everything on stderr but results."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from towers.errors import TowersError

P = ParamSpec("P")
R = TypeVar("R")

_WIDTH = 120  # of tables in a log file
_FIRST = (
    os.environ.get("LOCAL_RANK", "0") == "0"
)  # of the processes of one training: they do the same, and one tells it


def _console(stream: TextIO) -> Console:
    return Console(file=stream, soft_wrap=True, highlight=False, width=None if stream.isatty() else _WIDTH)


out, err = _console(sys.stdout), _console(sys.stderr)


def say(text: str) -> None:
    """A line about what is being done."""
    if _FIRST:
        err.print(text, markup=False)


def cell(value: object) -> str:
    """A value in a table."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:,.0f}" if isinstance(value, float) else str(value)


@contextmanager
def progress(title: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar to be called with (what, share done); plain lines without a terminal."""
    if not (err.is_terminal and _FIRST):
        said: set[str] = set()

        def tell(what: str, share: float) -> None:
            if what not in said:
                said.add(what)
                say(f"{title}: {what}")

        yield tell
        return
    columns = (TextColumn(f"{title}: {{task.description}}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        row = bar.add_task("starting", total=1.0)
        yield lambda what, share: bar.update(row, description=what, completed=share)


def user_errors(verb: Callable[P, R]) -> Callable[P, R]:
    """Print errors that a user can cure as what they are; leave with status 1. Defects keep their traceback."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return verb(*args, **kwargs)
        except TowersError as e:
            err.print(f"\n{type(e).__name__}: {e}", markup=False, style="red")
            sys.exit(1)

    return wrapped
