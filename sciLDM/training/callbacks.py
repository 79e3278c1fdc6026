"""What happens around the steps: stop signals, metrics, validation, checkpoints, a progress bar, a speed check."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, final

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sciLDM.training.checkpoint import write_checkpoint
from sciLDM.training.data import TrainingData
from sciLDM.training.plan import BatchPlan
from sciLDM.training.stage import Stage
from sciLDM.training.validation import validate

__all__ = ["ProgressBar", "Recorder", "StopSignals", "Throughput"]


def _stage(module: LightningModule) -> Stage:
    assert isinstance(module, Stage)
    return module


@final
class StopSignals(Callback):
    """Ctrl-C and SIGTERM end the training after the current step, so that the last checkpoint is whole.

    A second Ctrl-C stops at once. `received` is the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals
        stage = _stage(pl_module)

        def stop(number: int, frame: FrameType | None) -> None:
            if self.received is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.received = number
            stage.stop_requested = True

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@final
class Recorder(Callback):
    """After a step, as due: log, validate, write the checkpoint, stop. The last step is always validated and saved.

    A training that diverges raises inside its step and never gets here: the last checkpoint stays good.
    """

    def __init__(self, data: TrainingData, checkpoint: Path, *, samples: int) -> None:
        self.data, self.checkpoint, self.samples = data, checkpoint, samples

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stage = _stage(pl_module)
        settings, step, ending = stage.settings, stage.step, stage.stop_agreed
        # An interrupted run is not validated: who presses Ctrl-C does not want to wait, and resuming will validate.
        finished = stage.progress >= 1.0
        metrics: dict[str, float] = {}
        if step % settings.log_every == 0 or finished:
            metrics |= {
                f"train/{name.removeprefix('_')}": mean for name, mean in stage.window_means().items()
            }
            metrics |= {f"train/{name}": value for name, value in stage.latest.items() if name != "loss"}
            metrics["seconds"] = round(stage.seconds, 2)
        if step % settings.validate_every == 0 or finished:
            stage.validation = validate(stage, self.data)
            metrics |= {f"val/{name}": value for name, value in stage.validation.items()}
        for logger in trainer.loggers if metrics else ():
            logger.log_metrics(metrics, step=step)
        if (step % settings.checkpoint_every == 0 or ending) and trainer.is_global_zero:
            write_checkpoint(self.checkpoint, stage, samples=self.samples)
        if ending:
            trainer.should_stop = True
            trainer.strategy.barrier("sciLDM checkpoint")


@final
class ProgressBar(Callback):
    """Step, loss, speed and time left: a bar in a terminal, a line every half minute elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._first, self._start, self._printed = 0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage = _stage(pl_module)
        self._first, self._start = stage.step, time.monotonic()
        self._printed = self._start
        if trainer.is_global_zero and self.console.is_terminal:
            text = TextColumn("{task.fields[text]}")
            columns = (TextColumn("{task.description}"), BarColumn(), text, TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console)
            self._bar.add_task(stage.name, total=1.0, text="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        stage, now = _stage(pl_module), time.monotonic()
        rate = (stage.step - self._first) / max(now - self._start, 1e-9)
        text = f"{stage.step}/{stage.settings.max_steps} loss {stage.latest['loss']:.4g} {rate:.3g} it/s"
        if "loss" in stage.validation:
            text += f" val {stage.validation['loss']:.4g}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=stage.progress, text=text)
        elif now - self._printed > 30.0:
            self._printed = now
            left = (now - self._start) * (1 - stage.progress) / max(stage.progress, 1e-9)
            if self._first == 0:
                text += f", about {left / 60:.0f} min left"
            self.console.print(f"{stage.name} {text}", highlight=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@final
class Throughput(Callback):
    """Says within the first steps whether the loader or the model is the bottleneck.

    Loader: collating a few batches in this process (times the number of loader processes). Model: the time inside a
    few steps, after two that warm up.

    Attributes:
        message: The line printed, or an empty string before it is known.
    """

    def __init__(
        self, data: TrainingData, plan: BatchPlan, say: Callable[[str], None], *, steps: int = 5
    ) -> None:
        self.data, self.plan, self.say, self.steps = data, plan, say, steps
        self.message = ""
        self._loader = 0.0
        self._times: list[float] = []
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage, start, loaded = _stage(pl_module), time.perf_counter(), 0
        for step in range(stage.step, stage.step + 3):
            indices = self.plan.indices(step)
            self.data.fields(indices)
            loaded += len(indices)
            if time.perf_counter() - start > 0.5:
                break
        self._loader = max(1, stage.settings.workers) * loaded / max(time.perf_counter() - start, 1e-9)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.message or batch_idx < 2:
            return
        self._times.append(time.perf_counter() - self._began)
        if len(self._times) == self.steps:
            model = self.plan.batch_size / max(float(np.median(self._times)), 1e-9)
            which = "model" if model < self._loader else "loader"
            hint = "" if which == "model" else "; raise workers, or cache what fields() computes"
            self.message = (
                f"{_stage(pl_module).name}: loader {self._loader:,.0f}/s, model {model:,.0f}/s: "
                f"the {which} is the bottleneck{hint}"
            )
            self.say(self.message)
