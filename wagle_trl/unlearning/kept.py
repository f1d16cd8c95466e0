"""A metric for the best model: what it has kept, if it has forgotten."""

from datasets import Dataset
from transformers import TrainingArguments

from ..comparison.goal import KEPT, Goal
from ..comparison.trajectory import probabilities
from ..trainers.trainer_base import TrainerBase
from .trajectory import Trajectory


def asks_for_kept(args: TrainingArguments | None) -> bool:
    """Whether the best model is to be the one that kept most, among those that forgot."""
    return args is not None and (args.metric_for_best_model or "").removeprefix("eval_") == KEPT


class KeptMetric(TrainerBase):
    """
    Goes before a [`~transformers.Trainer`] in the bases of a class.

    Attributes:
        goal ([`~comparison.goal.Goal`]): What unlearning is to reach.
    """

    goal: Goal
    _trajectory: Trajectory | None = None

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Evaluate as [`~transformers.Trainer.evaluate`] does.

        Without `eval_dataset` and with `args.trajectory_steps`, the metrics have `eval_kept`, too, which
        `metric_for_best_model="kept"` names: [`~comparison.goal.Goal.kept`] of the training rows that are measured during
        training, at `args.stop_forget_probability`, or at 0.1 without it. It needs no evaluation rows.
        """
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # pyright: ignore[reportArgumentType]
        if eval_dataset is not None or self._trajectory is None:
            return metrics
        rated = {f"{metric_key_prefix}_{KEPT}": self.goal.kept(probabilities(self._trajectory.measure()))}
        self._trajectory.log(rated)
        # transformers has told the callbacks of each evaluation set alone; early stopping asks for this metric
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, rated)
        return metrics | rated
