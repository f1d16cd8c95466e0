"""How to go on after an interruption: advice that an exception carries to the end of the command."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files.manifest import Manifest
from ..files.run_folder import PARTIAL_FILE
from ..trainers.masked_sft import MaskedSFTTrainer
from ..trainers.resuming import check_same_run
from .output import Advice

_RESUME, _TOKEN = "--resume_from_checkpoint", "--hub_token"


@contextmanager
def advising(advice: Callable[[BaseException], str | None]) -> Iterator[None]:
    """
    Add a note to what is raised in this context.

    Args:
        advice (`Callable`): Makes the note of an exception, or `None`. What it raises itself is ignored.
    """
    try:
        yield
    except BaseException as error:
        with suppress(Exception):
            if text := advice(error):
                error.add_note(Advice(text))
        raise


def resume_advice(error: BaseException, trainer: MaskedSFTTrainer, command: str, argv: Sequence[str]) -> str | None:
    """Say how to resume a training; nothing where an error came before the first step."""
    args = trainer.args
    if (trainer.state.global_step == 0 and isinstance(error, Exception)) or not trainer.is_world_process_zero():
        return None
    if _has_checkpoint(trainer):
        return f"To go on: {command_line(command, [*_without(argv, _RESUME), _RESUME, 'true'])}"
    if args.save_strategy == "no":
        reason = "--save_strategy is no; steps or epoch save checkpoints"
    elif args.save_only_model:
        reason = "--save_only_model leaves out the state of the optimizer"
    else:
        steps = f", --save_steps {args.save_steps:g}" if args.save_strategy == "steps" else ""
        reason = f"no checkpoint was due yet (--save_strategy {args.save_strategy.value}{steps})"  # pyright: ignore[reportAttributeAccessIssue]
    return f"Nothing was saved to go on from: {reason}. The same command starts again."


def rerun_advice(folder: Path, command: str, argv: Sequence[str]) -> str | None:
    """Say that an evaluation goes on where it stopped, if it kept records in its folder."""
    if not any(folder.rglob(PARTIAL_FILE)):
        return None
    return f"To go on where it stopped, the same command again: {command_line(command, argv)}"


def command_line(command: str, argv: Sequence[str]) -> str:
    """The command to type, without a token."""
    is_secret = len(argv) != len(_without(argv, _TOKEN))
    return shlex.join(["wagle", command, *_without(argv, _TOKEN)]) + (f" {_TOKEN} ..." if is_secret else "")


def _without(argv: Sequence[str], option: str) -> list[str]:
    kept, skips = [], False
    for argument in argv:
        name, _, value = argument.partition("=")
        if name.startswith("--") and name.replace("-", "_") == option.replace("-", "_"):
            skips = not value
        elif skips and not argument.startswith("--"):
            skips = False
        else:
            kept.append(argument)
            skips = False
    return kept


def _has_checkpoint(trainer: MaskedSFTTrainer) -> bool:
    """Whether the run can resume: a checkpoint has its manifest, which is saved last, and is of this run."""
    for folder in Path(str(trainer.args.output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        with suppress(ValueError, OSError):
            if (manifest := Manifest.read(folder)) is not None:
                check_same_run(trainer, folder, manifest)
                return True
    return False
