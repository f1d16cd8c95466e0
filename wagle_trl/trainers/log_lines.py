"""The log of a trainer as one readable line per measurement, in place of a dict. Trackers and reports get the dicts."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from ..comparison.trajectory import SUFFIX
from ..text import percent, printable
from .trainer_base import TrainerBase

# Short names of what stands last in a line
_LAST = {"learning_rate": "lr", "grad_norm": "grad", "selected_moved": "moved"}
_HIDDEN = {"epoch", "loaded_step", "num_input_tokens_seen", "step", "total_flos"}
_HIDDEN_ENDS = ("num_tokens", "_per_second")
_EVAL = "eval_"


def use_log_lines(trainer: TrainerBase, given: Iterable[TrainerCallback | type[TrainerCallback]] | None) -> None:
    """
    Replace the callback that prints logs, unless the user gave one.

    Args:
        trainer ([`~transformers.Trainer`]): Trainer after `__init__`.
        given (list of [`~transformers.TrainerCallback`], *optional*): The callbacks that the user gave.
    """
    defaults = {ProgressCallback: ProgressLines, PrinterCallback: PrintedLines}
    kinds = [callback if isinstance(callback, type) else type(callback) for callback in given or ()]
    if any(issubclass(kind, tuple(defaults)) for kind in kinds):
        return
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) in defaults:  # a notebook has its own
            trainer.remove_callback(callback)
            trainer.add_callback(defaults[type(callback)])


class ProgressLines(ProgressCallback):
    """The progress bar, with lines above it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and self.training_bar is not None:  # only the main process draws one
            self.training_bar.write(log_line(logs, state))


class PrintedLines(PrinterCallback):
    """Lines without a progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and state.is_world_process_zero:
            print(log_line(logs, state))


def log_line(logs: Mapping[str, Any], state: TrainerState) -> str:
    """
    Format a measurement, such as `step 40/120  loss 1.52  lr 1e-05  grad 2.1  moved 3.2%`.

    Answer probabilities stand beside those of the first measurement: `forget 0.998 -> 0.41`. The step is
    that of the weights, which may be an earlier one.

    Args:
        logs (`dict`): What was measured.
        state ([`~transformers.TrainerState`]): State of the trainer.
    """
    shown = {name: value for name, value in logs.items() if name not in _HIDDEN and not name.endswith(_HIDDEN_ENDS)}
    parts = [f"step {logs.get('loaded_step', state.global_step)}/{state.max_steps}"]
    if shown and all(name.endswith(SUFFIX) for name in shown):
        first = {name: value for entry in reversed(state.log_history) for name, value in entry.items()}
        parts.append("answer probability")
        for name, value in shown.items():
            before, now = _text(first.get(name, value)), _text(value)
            parts.append(f"{name.removesuffix(SUFFIX)} {now if before == now else f'{before} -> {now}'}")
        return "  ".join(parts)
    if shown and all(name.startswith(_EVAL) for name in shown):
        shown = {name.removeprefix(_EVAL): value for name, value in shown.items()}
        parts.append("evaluation")
    parts += [f"{name} {_text(value)}" for name, value in shown.items() if name not in _LAST]
    parts += [
        f"{short} {percent(shown[name]) if name == 'selected_moved' else _text(shown[name])}"
        for name, short in _LAST.items()
        if name in shown
    ]
    return printable("  ".join(parts))


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
