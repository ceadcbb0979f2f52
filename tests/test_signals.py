"""A training that is asked to stop does so, says how to go on, and leaves with the status that says why."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.worlds import events, write

ROOT = Path(__file__).parent.parent
LOG = """\
name: tiny
source: {source}
events: {{files: log.parquet, time: {{column: time, unit: s}}}}
items: {{features: {{item_id: {{kind: id}}}}}}
split: {{rule: leave_last_out}}
"""


def interruptible() -> None:
    """A shell's background jobs ignore Ctrl-C, and their children with them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_says_how_to_go_on(sent: signal.Signals, tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", events(*((u, (u + i) % 9, i) for u in range(20) for i in range(6))))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/tiny.yaml").write_text(LOG.format(source=tmp_path))
    settings = ["data=tiny", "model=hybrid", "model.item.id_dropout=0", "batch_size=32", "checkpoint_every=1",
                "patience=null", "trainer.max_epochs=100000", "logger=none", "threads=1"]  # fmt: skip
    where = [f"var={tmp_path}/var", f"runs={tmp_path}/runs"]
    command = [sys.executable, "train.py", "--config-dir", str(tmp_path), *settings, *where]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible) as process:
        assert process.stderr is not None
        said, asked = [], float("inf")
        for line in process.stderr:
            said.append(line)
            # Python drops an interrupt that meets it in a destructor: asked again, as a person would
            if line.startswith("epoch 3/") or time.monotonic() > asked + 20:
                process.send_signal(sent)
                asked = time.monotonic()
        assert process.wait(60) == 128 + sent, said[-20:]
    (run,) = (tmp_path / "runs/tiny").iterdir()
    assert said[-1] == f"stopped; go on with: python train.py resume={run}\n"
    assert (run / "checkpoints/last.ckpt").is_file()
