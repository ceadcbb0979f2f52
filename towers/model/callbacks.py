"""What a run tells while it trains: progress, throughput, a trace, and a clear word when the loss is no number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.profiler import ProfilerActivity, profile

from towers.errors import ConfigError
from towers.model.memory import size, used_bytes


class Clock:
    """Counts examples, seconds, and the seconds between steps, in which nothing is computed.

    Between two steps a run waits for its next batch, and sometimes saves a checkpoint.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was counted; a validation within an epoch does not count."""
        self.examples, self.waited = 0, 0.0
        self.since = self.ended = time.perf_counter()

    def step_begins(self) -> None:
        """A batch is there."""
        self.waited += time.perf_counter() - self.ended

    def step_ends(self, examples: int) -> None:
        """A step is over, or on an accelerator under way."""
        self.examples += examples
        self.ended = time.perf_counter()

    @property
    def rate(self) -> float:
        """Examples for each second."""
        return self.examples / max(self.ended - self.since, 1e-9)

    @property
    def wait(self) -> float:
        """Share of the time that passed between steps."""
        return self.waited / max(self.ended - self.since, 1e-9)


class Timed(pl.Callback):
    """Runs a clock over the training steps; validation does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting; a run resumed within an epoch sees no start of it."""
        self.clock.restart()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start again; waiting for the first batch, and for what is read before it, counts."""
        self.clock.restart()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start again."""
        self.clock.restart()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch is there."""
        self.clock.step_begins()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count its examples, of all processes."""
        self.clock.step_ends(len(batch) * trainer.world_size)


class Throughput(Timed):
    """Logs ``throughput/examples_per_s`` and ``throughput/data_wait``, the share of the time between steps.

    With the other training metrics; validation does not count.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log at the trainer's interval."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step and trainer.global_step % every == 0:
            pl_module.log("throughput/examples_per_s", self.clock.rate)
            pl_module.log("throughput/data_wait", self.clock.wait)
            self.clock.restart()


class StopOnNonFiniteLoss(pl.Callback):
    """Stops a run whose loss has become NaN or infinite, and says what usually helps.

    Args:
        every: batches between two looks; a look waits for the device. The last batch of an epoch is always looked at.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look.

        Raises:
            ConfigError: the loss is NaN or infinite.
        """
        if (batch_idx + 1) % self.every and not trainer.is_last_batch:
            return
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not torch.isfinite(loss).item():
            raise ConfigError(
                f"the loss is {loss.item()} at step {trainer.global_step} (epoch {trainer.current_epoch})\n"
                "  cure: lower optimiser.learning_rate, add optimiser.warmup, set trainer.gradient_clip_val=1.0, raise "
                "model.similarity.temperature, or train with trainer.precision=32-true"
            )


class ProgressBar(Timed, pl.callbacks.ProgressBar):
    """One line for each epoch: loss, examples/s, share of waiting for data, memory, time left; then validation metrics.

    Without a terminal, one plain line at the end of each epoch.

    Args:
        refresh_s: seconds between two refreshes; reading the loss waits for the device.
        console: where it is written, by default stderr.
    """

    def __init__(self, refresh_s: float = 0.5, console: Console | None = None) -> None:
        super().__init__()
        self.refresh_s = refresh_s
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None
        self.enabled = True
        self.told = ""

    def disable(self) -> None:
        """Called by Lightning on all ranks but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Called by Lightning on the first rank."""
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A bar from where the run was stopped, if it was: time left is that of what is left."""
        super().on_train_start(trainer, pl_module)
        self._begin(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.completed)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A new bar."""
        super().on_train_epoch_start(trainer, pl_module)
        self._begin(trainer)

    def _begin(self, trainer: pl.Trainer, done: int = 0) -> None:
        self._stop()
        self.last = 0.0
        self.loss = float("nan")
        if not (self.enabled and self.console.is_terminal):
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Progress(*columns, console=self.console, refresh_per_second=2)
        batches = self.total_train_batches
        known = isinstance(batches, int) or batches != float("inf")
        self.row = self.bar.add_task(
            self._epoch(trainer), total=int(batches) if known else None, completed=done, told=""
        )
        self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; look at the loss now and then."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now = self.clock.ended
        if self.enabled and (now - self.last > self.refresh_s or trainer.is_last_batch):
            self.last = now
            self.loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
            held = used_bytes(pl_module.device)
            self.told = f"loss {self.loss:.4f}  {self.clock.rate:,.0f} examples/s  data {self.clock.wait:.0%}"
            self.told += "" if held is None else f"  {size(held)}"
            if self.bar is not None:
                self.bar.update(self.row, completed=batch_idx + 1, told=self.told)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar; say what validation found."""
        self._stop()
        if self.enabled:
            metrics = [
                f"{k} {float(v):.4f}" for k, v in sorted(trainer.callback_metrics.items()) if k.startswith("valid/")
            ]
            told = [] if self.console.is_terminal else [f"{self._epoch(trainer)}  {self.told}"]
            if told or metrics:
                self.console.print("  ".join([*told, *metrics]), highlight=False, soft_wrap=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _epoch(self, trainer: pl.Trainer) -> str:
        last = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        return f"epoch {trainer.current_epoch + 1}{last}"


class Trace(pl.Callback):
    """Writes ``trace.json``: what the processor and the card did in some steps, for Perfetto or chrome://tracing.

    When to use it: a step is slower than it should be, or the share of waiting for data is high.

    Args:
        folder: where it is written; the first process's trace only.
        skip: batches before it begins, in which caches fill and kernels are chosen; at most half of an epoch.
        steps: batches that it lasts; fewer if the epoch ends before.
        console: where it is said what was written, by default stderr.
    """

    def __init__(self, folder: str, skip: int = 4, steps: int = 8, console: Console | None = None) -> None:
        self.path, self.skip, self.steps = Path(folder) / "trace.json", skip, steps
        self.console = console or Console(stderr=True)
        self.seen, self.traced = 0, 0
        self.profiler: profile | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Skip no more than half of an epoch: it may be all that is trained."""
        batches = trainer.num_training_batches
        if batches != float("inf"):
            self.skip = min(self.skip, int(batches) // 2)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin, if it is time."""
        if self.seen == self.skip and trainer.is_global_zero:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self.profiler = profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)
            self.profiler.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; end, if it is time."""
        self.seen += 1
        self.traced += self.profiler is not None
        if self.traced == self.steps or trainer.is_last_batch:  # what follows is validation
            self._write()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End in any case; say so if nothing came of it."""
        self._write()
        if stage == "fit" and trainer.is_global_zero and not self.traced:
            self._say(f"no trace: batches trained: {self.seen}; raise limit_train_batches or max_epochs")

    def _write(self) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.path))
            self.profiler = None
            self._say(f"batches traced: {self.traced}, in {self.path}, for https://ui.perfetto.dev or chrome://tracing")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
