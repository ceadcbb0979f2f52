"""Runs a training and kills it: ``python -m tests.killing FOLDER KILLS SEED OVERRIDE…``.

Everything is imported once; each attempt is a fork of this process that resumes the run, and is killed with
SIGKILL after a random time. After the last kill the run is left to finish. Prints how many attempts came to
a checkpoint, so that a test can tell that the kills hit the training and not its preparation.
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


def main(folder: Path, kills: int, seed: int, overrides: list[str]) -> int:
    """Kill ``kills`` times, then let the run finish; the exit status of the last attempt."""
    rng = random.Random(seed)
    fresh = composed(overrides)
    delivered, hit = 0, set()
    while True:
        begun = (folder / "config.yaml").exists()
        config = composed([*overrides, f"resume={folder}"]) if begun else fresh
        pid = attempt(config, folder)
        if delivered < kills:
            time.sleep(rng.uniform(0.3, 2.0))
            os.kill(pid, signal.SIGKILL)
            delivered += 1
        _, status = os.waitpid(pid, 0)
        last = folder / "checkpoints/last.ckpt"
        if last.exists():
            hit.add(last.stat().st_mtime_ns)
        if os.WIFEXITED(status) and (os.WEXITSTATUS(status) or delivered >= kills):
            print(f"kills={delivered} checkpoints_seen={len(hit)}")
            return os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
