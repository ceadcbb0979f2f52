"""Runs a training and kills it: ``python -m tests.killing FOLDER KILLS SEED OVERRIDE…``.

Everything is imported once; each attempt is a fork of this process that resumes the run, and is killed with SIGKILL:
some at a random time from the start and before they have saved anything, the others a random moment after their first
or second checkpoint. How far an attempt comes is thus counted in checkpoints and not in seconds, however busy the
machine is. After the last kill the run is left to finish. Prints how many attempts came to a checkpoint, so that a test
can tell that the kills hit the training and not only its preparation.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import train  # noqa: F401  (registers the run_folder resolver)
from pipeline import training

ROOT = Path(__file__).parent.parent


def composed(overrides: list[str]) -> DictConfig:
    """The train config."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides)


def attempt(config: DictConfig, folder: Path) -> int:
    """Train in a child process; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        training.train(config, folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int, last: Path, checkpoints: int, seconds: float) -> None:
    """Until an attempt has saved so many checkpoints and a moment more; 0: for that time, or until its first one."""
    saved, seen, start = 0, stamp(last), time.monotonic()
    while running(pid):
        if (now := stamp(last)) != seen:
            saved, seen = saved + 1, now
        if saved >= max(checkpoints, 1):
            break
        if not checkpoints and time.monotonic() - start > seconds:
            return
        time.sleep(0.002)
    if checkpoints:
        time.sleep(seconds)


def stamp(path: Path) -> int | None:
    """When a file was written; None if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def running(pid: int) -> bool:
    """Whether a child has not ended; it is not reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def main(folder: Path, kills: int, seed: int, overrides: list[str]) -> int:
    """Kill ``kills`` times, then let the run finish; the exit status of the last attempt."""
    rng = random.Random(seed)
    fresh = composed(overrides)
    delivered, hit, last = 0, set(), folder / "checkpoints/last.ckpt"
    while True:
        begun = (folder / "config.yaml").exists()
        config = composed([*overrides, f"resume={folder}"]) if begun else fresh
        pid = attempt(config, folder)
        if delivered < kills:
            checkpoints = rng.choice((0, 0, 1, 1, 2))
            wait(pid, last, checkpoints, rng.uniform(0.0, 0.03 if checkpoints else 2.0))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        delivered += os.WIFSIGNALED(status)
        if (saved := stamp(last)) is not None:
            hit.add(saved)
        if os.WIFEXITED(status):
            print(f"kills={delivered} checkpoints_seen={len(hit)}")
            return os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
