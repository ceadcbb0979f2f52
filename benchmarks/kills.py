"""Trainings that are killed again and again, and end with the very weights of one that was left alone.

    python -m benchmarks.kills --kills 300 [--seed 1] [--per-run 25] [--folder FOLDER]

Every attempt is a fork of this process that trains, or resumes, and is killed with SIGKILL: while it starts, in the
warm-up of the learning rate, within a step, within the saving of a checkpoint, at the end of an epoch. Each aims at one
of these stages and dies a random moment after it has come there; what counts is the stage in which it was when it died.
Some attempts are not killed but meet a disk that fails while a checkpoint is written, and some find, when they resume,
that a bit of the last checkpoint has changed. Runs take turns: one holds its log in memory, the other streams it within
a small ``data.memory_budget``, with another number of ``workers`` after each resume. At its end a run's weights,
optimisers, schedule, counters, best checkpoint and outcome are held against those of a run without any of this.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pyarrow.dataset  # noqa: F401  (else every attempt imports it)
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import train  # noqa: F401  (registers the run_folder resolver)
from benchmarks.line import report
from data import writer
from pipeline import training
from towers.errors import DataError
from towers.model import checkpoints
from towers.model.checkpoints import BEST, LAST, PREVIOUS
from towers.model.module import Retrieval

ROOT = Path(__file__).parent.parent
WARM_UP = 40  # optimiser steps
# Small, but with everything that carries state: histories, sparse tables with their own optimiser, accumulation,
# clipping, a schedule with warm-up, dropout, validation and a best checkpoint; saved every fifth step.
SETTINGS = [
    "experiment=market", "logger=none", "threads=1", "batch_size=64", "checkpoint_every=5", "patience=null",
    "evaluate=[]",
    "trainer.max_epochs=8", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0",
    "optimiser.schedule=cosine", f"optimiser.warmup={WARM_UP}", "model.user.encoders.sparse_above=100",
    "model.item.dropout=0.1",
    "data.generate.users=300", "data.generate.jobs=200", "data.generate.impressions=30000",
]  # fmt: skip
VARIANTS: dict[str, list[str]] = {"in memory": [], "streamed": ["data.memory_budget=60KB"]}
PART = 1024  # rows, so that a small log has parts to be streamed
COMPARED = ("epoch", "global_step", "batches_seen", "state_dict", "optimizer_states", "lr_schedulers")


class Stage(IntEnum):
    """Where a training is."""

    START = 0
    WARM_UP = 1
    STEP = 2
    SAVE = 3
    EPOCH_END = 4
    FINISH = 5

    def __str__(self) -> str:
        """For people."""
        return self.name.lower().replace("_", "-")


class Board(ctypes.Structure):
    """What a training tells of itself, in memory that it shares with its parent and that outlives it.

    Attributes:
        stage: where it is.
        saves: checkpoints that this attempt has saved.
        steps: optimiser steps of the run.
        ready: second of the monotonic clock in which its first step began; 0 before.
        saving: seconds that its last checkpoint took.
    """

    _fields_: ClassVar[Any] = [
        ("stage", ctypes.c_int), ("saves", ctypes.c_int), ("steps", ctypes.c_int),
        ("ready", ctypes.c_double), ("saving", ctypes.c_double),
    ]  # fmt: skip

    @classmethod
    def shared(cls) -> Board:
        """One that children inherit."""
        return cls.from_buffer(mmap.mmap(-1, ctypes.sizeof(cls)))

    def clear(self) -> None:
        """Before an attempt; what it knew of the run stays."""
        self.stage, self.saves, self.ready = Stage.START, 0, 0.0


@dataclass(frozen=True)
class Aim:
    """Where an attempt is to die: ``delay`` seconds after it has come to a stage, having saved so many checkpoints.

    With ``disk`` it is not killed: the next checkpoint then meets a disk that fails in that way.
    """

    stage: Stage
    saves: int
    delay: float
    disk: str | None = None


class Aims:
    """Draws aims from a deck, so that few kills come to all stages too.

    Args:
        rng: of the experiment.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.deck: list[Stage] = []
        self.start = 2.0  # seconds until the first step

    def draw(self, board: Board) -> Aim:
        """The next one, given what the board says of the run."""
        if board.steps < WARM_UP and self.rng.random() < 0.5:
            return Aim(Stage.WARM_UP, self.rng.choice((0, 1)), self.rng.uniform(0.0, 0.05))
        if not self.deck:
            self.deck = [Stage.START] * 3 + [Stage.STEP] * 5 + [Stage.SAVE] * 7 + [Stage.EPOCH_END] * 4
            self.rng.shuffle(self.deck)
        stage, saves = self.deck.pop(), self.rng.choice((0, 0, 1, 1, 2))
        if stage == Stage.START:
            return Aim(stage, 0, self.rng.uniform(0.0, self.start))
        return Aim(stage, saves, self.rng.uniform(0.0, board.saving if stage == Stage.SAVE else 0.05))

    def disk(self) -> Aim:
        """One at which the disk fails instead."""
        return Aim(Stage.SAVE, self.rng.choice((0, 1)), 0.0, self.rng.choice(("flush", "rename", "write")))


@contextmanager
def watched(board: Board, aim: Aim | None) -> Iterator[None]:
    """Let a training tell where it is; break its disk if that is the aim."""
    write, step, validate, evaluate = (
        checkpoints.write, Retrieval.training_step, Retrieval.validation_step, training.evaluate_run,
    )  # fmt: skip

    def writing(*args: Any) -> None:
        before, board.stage = board.stage, Stage.SAVE
        if aim is not None and aim.disk is not None and board.saves >= aim.saves:
            with broken(aim.disk):
                write(*args)
        began = time.monotonic()
        write(*args)
        board.stage, board.saves, board.saving = before, board.saves + 1, time.monotonic() - began

    def stepping(self: Retrieval, *args: Any) -> Any:
        board.steps, board.ready = self.global_step, board.ready or time.monotonic()
        board.stage = Stage.WARM_UP if self.global_step < WARM_UP else Stage.STEP
        return step(self, *args)

    def telling(stage: Stage, f: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **named: Any) -> Any:
            board.stage = stage
            return f(*args, **named)

        return told

    with (
        patch.object(checkpoints, "write", writing),
        patch.object(Retrieval, "training_step", stepping),
        patch.object(Retrieval, "validation_step", telling(Stage.EPOCH_END, validate)),
        patch.object(training, "evaluate_run", telling(Stage.FINISH, evaluate)),
    ):
        yield


@contextmanager
def broken(what: str) -> Iterator[None]:
    """A disk that is full when it is to ``flush``, to ``rename``, or in the middle of a ``write``."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half(self: Any, data: Any) -> None:
        self.file.write(bytes(data)[: len(data) // 2])
        full()

    owner, name, f = {
        "flush": (os, "fsync", full), "rename": (Path, "replace", full), "write": (checkpoints._Hashed, "write", half),
    }[what]  # fmt: skip
    with patch.object(owner, name, f):
        yield


def composed(overrides: list[str]) -> DictConfig:
    """The train config."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides)


def attempt(folder: Path, overrides: list[str], board: Board, aim: Aim | None, log: Path) -> int:
    """Train in a child process, or resume if the run has begun; its pid."""
    resumed = [f"resume={folder}"] if (folder / "config.yaml").exists() else []
    config = composed([*overrides, *resumed])
    board.clear()
    if pid := os.fork():
        return pid
    status = 1
    try:
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        with watched(board, aim):
            training.train(config, folder, [o for o in overrides if resumed and o.startswith("workers=")])
        status = 0
    except DataError as e:  # what a failing disk should come to
        print(e)
        status = 3
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def running(pid: int) -> bool:
    """Whether a child has not ended; it is not reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def reached(pid: int, board: Board, aim: Aim) -> bool:
    """Wait until an attempt is where it is to die; whether it still runs then."""
    while running(pid):
        if board.stage == aim.stage and board.saves >= aim.saves:
            time.sleep(aim.delay)
            return running(pid)
        time.sleep(0.0005)
    return False


class Killer:
    """Brings runs to their end, against resistance.

    Args:
        folder: for runs and data.
        seed: of the kills.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.board = folder, random.Random(seed), Board.shared()
        self.aims = Aims(self.rng)
        self.kills: Counter[Stage] = Counter()
        self.disks = self.damaged = 0

    @property
    def delivered(self) -> int:
        """All kills."""
        return sum(self.kills.values())

    def overrides(self, variant: str) -> list[str]:
        """Settings of the next attempt."""
        workers = [f"workers={self.rng.choice((1, 2, 3))}"] if variant == "streamed" else []
        return [*SETTINGS, *VARIANTS[variant], *workers, f"var={self.folder}/var", f"runs={self.folder}/runs"]

    def run(self, name: str, variant: str, kills: int) -> Path:
        """Kill a run so often at most, then let it finish.

        Raises:
            RuntimeError: an attempt ended in another way.
        """
        folder, log, upto = self.folder / name, self.folder / f"{name}.log", self.delivered + kills
        self.board.steps = 0
        while True:
            aim = self._aim() if self.delivered < upto else None
            began = time.monotonic()
            pid = attempt(folder, self.overrides(variant), self.board, aim, log)
            if aim is not None and aim.disk is None and reached(pid, self.board, aim):
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if self.board.ready:
                self.aims.start = self.board.ready - began
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                self.kills[Stage(self.board.stage)] += 1
                self.damaged += self.rng.random() < 0.05 and damaged(folder / "checkpoints", self.rng)
            elif os.WEXITSTATUS(status) == 3 and aim is not None and aim.disk is not None:
                self.disks += 1
            elif os.WEXITSTATUS(status) or os.WIFSIGNALED(status):
                raise RuntimeError(f"attempt of {folder} ended with status {status}:\n{log.read_text()[-3000:]}")
            else:
                return folder

    def _aim(self) -> Aim:
        return self.aims.disk() if self.rng.random() < 0.1 else self.aims.draw(self.board)


def damaged(folder: Path, rng: random.Random) -> bool:
    """Flip a bit of the last checkpoint, if there is a good one before it; say whether that was done."""
    last, previous = folder / LAST, folder / PREVIOUS
    if not (last.exists() and previous.exists()) or checkpoints.damage(last) or checkpoints.damage(previous):
        return False
    content = bytearray(last.read_bytes())
    content[rng.randrange(len(content) // 2)] ^= 1 << rng.randrange(8)
    last.write_bytes(content)
    return True


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested values are not equal bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}[{i}]")]
    return [] if type(a) is type(b) and a == b else [f"{where}: {a} and {b}"]


def outcome(folder: Path) -> dict[str, Any]:
    """What is compared of a finished run."""
    last, best = (checkpoints.read(folder / "checkpoints" / name) for name in (LAST, BEST))
    told = json.loads((folder / "metrics.json").read_text())
    return {"last": {k: last[k] for k in COMPARED}, "best": best["state_dict"], "outcome": told}


def main() -> int:
    """Kill, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--per-run", type=int, default=25, help="kills that a run meets at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for runs and data; by default a temporary one")
    args = parser.parse_args()
    writer._ROW_GROUP = PART
    with tempfile.TemporaryDirectory() as temporary:
        killer = Killer(args.folder or Path(temporary), args.seed)
        straight = {v: outcome(killer.run(f"straight-{i}", v, 0)) for i, v in enumerate(VARIANTS)}
        different, runs = 0, 0
        for number, variant in enumerate(itertools.cycle(VARIANTS)):
            if (left := args.kills - killer.delivered) <= 0:
                break
            before = killer.delivered
            folder = killer.run(f"killed-{number}", variant, min(args.per_run, left))
            found = differences(straight[variant], outcome(folder))
            different, runs = different + bool(found), runs + 1
            print(f"{variant}: {killer.delivered - before} kills, {'; '.join(found[:3]) or 'equal'}", flush=True)
            shutil.rmtree(folder)
    stages = ", ".join(f"{n} {stage}" for stage, n in sorted(killer.kills.items()))
    print(f"{killer.delivered} kills of {runs} runs ({stages}); {killer.disks} failures of the disk while a checkpoint "
          f"was written, {killer.damaged} damaged checkpoints")  # fmt: skip
    holds = [report("kills/delivered", killer.delivered, args.kills, at_most=False)]
    for stage in (Stage.START, Stage.WARM_UP, Stage.STEP, Stage.SAVE, Stage.EPOCH_END):
        holds.append(report(f"kills/{stage}", killer.kills[stage], args.kills // 20, at_most=False))
    holds.append(report("kills/runs_that_differ", different, 0, at_most=True))
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
