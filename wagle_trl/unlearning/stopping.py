"""Ends a run when enough is forgotten and the rest is back, or when nothing moves any more."""

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from ..comparison.goal import KEPT, Goal, points
from ..comparison.trajectory import trajectory
from ..trainers.masked_sft import MaskedSFTTrainer
from .config import UnlearningConfig
from .kept import asks_for_kept

logger = logging.get_logger(__name__)


def check_measured(args: TrainingArguments | None) -> None:
    """Refuse options that read measurements where none are made."""
    if not isinstance(args, UnlearningConfig) or args.trajectory_steps:
        return
    if args.stop_forget_probability:
        raise ValueError(
            "stop_forget_probability needs measurements, and trajectory_steps is 0; raise trajectory_steps, or set "
            "stop_forget_probability to 0."
        )
    if asks_for_kept(args):
        raise ValueError(
            f"metric_for_best_model '{KEPT}' needs measurements, and trajectory_steps is 0; raise trajectory_steps."
        )


class StopWhenDone(TrainerCallback):
    """
    Ends the run at the first measurement that reaches a goal, or when nothing has moved for `goal.patience` of them.

    It reads what [`~unlearning.trajectory.Trajectory`], which must be added first, has logged: the same in every process,
    and in a run that was resumed. Each call of `train` has its own patience. A run that begins below the forget
    probability of the goal, which it warns of, or was not measured before its first step, takes every step.

    Args:
        trainer ([`~trainers.masked_sft.MaskedSFTTrainer`]): Trainer to stop.
        goal ([`~comparison.goal.Goal`]): What is to be reached.
    """

    def __init__(self, trainer: MaskedSFTTrainer, goal: Goal):
        self.trainer, self.goal = trainer, goal

    def on_train_begin(self, args, state, control, **kwargs):
        before = self.trainer.history.before
        if before and self.goal.is_forgotten(before) and state.is_world_process_zero:
            logger.warning(
                f"The forget rows have the answer probability {before['forget']:.3g} before the first step: the model does not "
                "know them, or sees them in another format than in its training. The run will not end by itself."
            )
        if state.global_step and self._is_over():  # resumed from the checkpoint with which it had ended
            control.should_training_stop = True

    def on_step_end(self, args: UnlearningConfig, state, control, **kwargs):
        if state.global_step % args.trajectory_steps or not self._is_over():
            return
        control.should_training_stop = True
        # As transformers does at the last step
        if args.eval_strategy == IntervalStrategy.STEPS and args.eval_delay <= state.global_step:
            control.should_evaluate = True
        if args.save_strategy == SaveStrategy.STEPS:
            control.should_save = True

    def _is_over(self) -> bool:
        before = self.trainer.history.before
        if not before or self.goal.is_forgotten(before):
            return False
        measured = points(trajectory(self.trainer.state.log_history))
        return self.goal.is_reached(measured[-1], before) or self.goal.still(measured, before) >= self.goal.patience
