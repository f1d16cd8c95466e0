"""Arms of the study and how one is run: unlearning with a mask until the forget set is forgotten, then attacks."""

import tempfile
import time
from dataclasses import asdict, dataclass

import torch
from transformers import TrainerCallback

from benchmarks.environment import environment
from benchmarks.study_masks import make_mask
from benchmarks.study_world import World
from wagle_trl import GradDiffConfig, GradDiffTrainer, NPOConfig, NPOTrainer
from wagle_trl.evaluation.attacks import relearn

OBJECTIVES = {"npo": (NPOTrainer, NPOConfig), "graddiff": (GradDiffTrainer, GradDiffConfig)}
FORGOTTEN = 0.1  # mean answer probability of the forget rows at which a run ends
MAX_STEPS = 50  # ten epochs of the forget rows
WATCH_STEPS = 3
WATCH_ROWS = 64
BATCH_SIZE = 8
RELEARNING = dict(share=0.2, steps=20, learning_rate=1e-4, batch_size=8, every=4)


@dataclass(frozen=True)
class Arm:
    """
    One run.

    Args:
        objective (`str`): Key of `OBJECTIVES`.
        score (`str`): As in [`~benchmarks.study_masks.make_mask`].
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
        `dict`: The raw row: the arm, its trajectory, seconds, environment; with attacks what is known at the end (of
            all rows, and of the forget rows asked in other words) and after relearning.
    """
    torch.manual_seed(arm.seed)
    mask = None if (arm.score, arm.scope) == ("dense", "all") else make_mask(world, arm.score, arm.density, arm.scope)
    start = time.perf_counter()
    trainer = _train(arm, world, mask)
    row = asdict(arm) | {"trajectory": trajectory(trainer.state.log_history)}
    row["training_seconds"] = round(time.perf_counter() - start, 1)
    model = world.model()  # a copy of the trainer's own model would run the original: TRL patches its forward
    model.load_state_dict(trainer.model.state_dict())
    if attacks:
        row |= {"end": world.probabilities(model), "relearn": _relearn(world, model, arm.seed)}
    where = environment()
    return row | {key: where[key] for key in ("date", "commit", "versions")}


def trajectory(log_history: list[dict]) -> dict[str, list]:
    """Steps, and the probability of each set at them."""
    entries = [entry for entry in log_history if "forget_probability" in entry]
    columns = {name: f"{name}_probability" for name in ("forget", "retain", "unseen_retain")}
    rounded = {name: [round(entry[column], 5) for entry in entries] for name, column in columns.items()}
    return {"step": [entry["step"] for entry in entries]} | rounded


def _train(arm: Arm, world: World, mask):
    trainer_class, config_class = OBJECTIVES[arm.objective]
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(
            folder,
            max_steps=MAX_STEPS,
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
        )
        trainer = trainer_class(
            world.model(),
            args,
            train_dataset=world.dataset("forget"),
            retain_dataset=world.dataset("retain"),
            eval_dataset={"unseen_retain": world.dataset("unseen_retain")},
            processing_class=world.tokenizer,
            mask=mask,
            callbacks=[_StopWhenForgotten()],
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
