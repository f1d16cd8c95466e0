"""Arms of the study and how one is run: unlearning with a mask until the forget set is forgotten, then attacks."""

import tempfile
import time
from dataclasses import asdict, dataclass, replace

from datasets import Dataset
from transformers import TrainerCallback

from benchmarks.environment import environment
from benchmarks.study.masks import make_mask
from benchmarks.study.world import MovedWorld, World
from wagle_trl import GradDiffConfig, GradDiffTrainer, NPOConfig, NPOTrainer
from wagle_trl.comparison.trajectory import trajectory
from wagle_trl.evaluation.attacks import relearn
from wagle_trl.masks.mask import WeightMask

FORGOTTEN = 0.1  # mean answer probability of the forget rows at which a run ends
MAX_STEPS = 50  # ten epochs of the forget rows
RESCORED, RESCORE_STEPS = "-rescored", 15
WATCH_STEPS = 3
WATCH_ROWS = 64
BATCH_SIZE = 8
RELEARNING = dict(share=0.2, steps=20, learning_rate=1e-4, batch_size=8, every=4)


@dataclass(frozen=True)
class Objective:
    """
    What is minimized, and for how long.

    Args:
        trainer, config (`type`): Trainer and its config.
        options (`dict`): Options of the config.
        steps (`int`, *optional*, defaults to `MAX_STEPS`): Optimizer steps.
        stops (`bool`, *optional*, defaults to `True`): Whether the run ends when the forget rows are forgotten.
    """

    trainer: type
    config: type
    options: dict
    steps: int = MAX_STEPS
    stops: bool = True


OBJECTIVES = {
    "npo": Objective(NPOTrainer, NPOConfig, {"beta": 0.1}),
    "npo-beta-0.02": Objective(NPOTrainer, NPOConfig, {"beta": 0.02}),
    "npo-beta-0.5": Objective(NPOTrainer, NPOConfig, {"beta": 0.5}),
    "npo-100-steps": Objective(NPOTrainer, NPOConfig, {"beta": 0.1}, 100, stops=False),
    "graddiff": Objective(GradDiffTrainer, GradDiffConfig, {}),
    "graddiff-100-steps": Objective(GradDiffTrainer, GradDiffConfig, {}, 100, stops=False),
}


@dataclass(frozen=True)
class Arm:
    """
    One run.

    Args:
        objective (`str`): Key of `OBJECTIVES`.
        score (`str`): As in [`~benchmarks.study.masks.make_mask`].
        density (`float`): Share of the scope that may move.
        scope (`str`): `"blocks"` or `"all"`.
        learning_rate (`float`): After three steps of warm-up, constant.
        seed (`int`): World, order of the rows, and random mask.
    """

    objective: str
    score: str
    density: float
    scope: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        return "_".join(str(value) for value in asdict(self).values())


class _StopWhenForgotten(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs.get("forget_probability", 1.0) <= FORGOTTEN:
            control.should_training_stop = True


def run(arm: Arm, world: World, *, attacks: bool) -> dict:
    """
    Unlearn with an arm.

    Args:
        arm ([`Arm`]): The arm.
        world ([`World`]): World of its seed.
        attacks (`bool`): Whether to attack the result, too.

    Returns:
        `dict`: The raw row: the arm, its trajectory, seconds, environment; with attacks also
            [`~benchmarks.study.world.World.knowledge`] at the end, and what relearning brings back.
    """
    start = time.perf_counter()
    history, state = _unlearn_rescoring(arm, world) if arm.score.endswith(RESCORED) else _unlearn(arm, world)
    row = asdict(arm) | {"trajectory": trajectory(history), "training_seconds": round(time.perf_counter() - start, 1)}
    model = world.model()  # a copy of the trainer's own model would run the original: TRL patches its forward
    model.load_state_dict(state)
    if attacks:
        row |= {"end": world.knowledge(model), "relearn": _relearn(world, model, arm.seed)}
    where = environment()
    return row | {key: where[key] for key in ("date", "commit", "versions")}


def _unlearn(arm: Arm, world: World) -> tuple[list[dict], dict]:
    """Log history and weights of a run with one mask."""
    mask = None if (arm.score, arm.scope) == ("dense", "all") else make_mask(world, arm.score, arm.density, arm.scope)
    trainer = _train(arm, world, mask, world.dataset("forget"), OBJECTIVES[arm.objective].steps)
    return trainer.state.log_history, trainer.model.state_dict()


def _unlearn_rescoring(arm: Arm, world: World) -> tuple[list[dict], dict]:
    """The same with a new mask, from the weights as they then are, every `RESCORE_STEPS` steps, up to four times."""
    history, state, forget = [], world.model().state_dict(), world.dataset("forget")
    for start in range(0, MAX_STEPS, RESCORE_STEPS):
        here = MovedWorld(world.tofu_dir, world.cache, world.seed, state)
        mask = make_mask(here, arm.score.removesuffix(RESCORED), arm.density, arm.scope)
        trainer = _train(replace(arm, seed=arm.seed + start), here, mask, forget, RESCORE_STEPS)
        logged = trajectory(trainer.state.log_history)
        history += [e | {"step": e["step"] + start} for e in trainer.state.log_history if not start or e["step"]]
        state, forget = trainer.model.state_dict(), trainer.train_dataset  # with NPO's reference at the base model
        if logged["forget"][-1] <= FORGOTTEN:
            break
    return history, state


def _train(arm: Arm, world: World, mask: WeightMask | None, forget: Dataset, steps: int):
    objective = OBJECTIVES[arm.objective]
    with tempfile.TemporaryDirectory() as folder:
        args = objective.config(
            folder,
            max_steps=steps,
            learning_rate=arm.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=3,
            per_device_train_batch_size=BATCH_SIZE,
            trajectory_steps=WATCH_STEPS,
            trajectory_rows=WATCH_ROWS,
            seed=arm.seed,
            bf16=False,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **objective.options,
        )
        trainer = objective.trainer(
            world.model(),
            args,
            train_dataset=forget,
            retain_dataset=world.dataset("retain"),
            eval_dataset={"unseen_retain": world.dataset("unseen_retain")},
            processing_class=world.tokenizer,
            mask=mask,
            callbacks=[_StopWhenForgotten()] if objective.stops else None,
        )
        trainer.train()
    return trainer


def _relearn(world: World, model, seed: int) -> dict:
    """Curve of the forget rows that relearning does not see, and what is left of the unseen retain rows after it."""
    rows = [{"question": r["question"], "answer": r["answer"]} for r in world.rows["forget"]]
    curve = relearn(model, world.tokenizer, rows, seed=seed, progress=False, **RELEARNING)
    return {
        "step": list(curve.steps),
        "forget": [round(p, 5) for p in curve.probabilities],
        "unseen_retain": world.probability(curve.model, world.rows["unseen_retain"]),
    }
