"""The demo: small models learn made-up people by heart and forget three of them, with all weights and with masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..comparison.figures import plot_trade_off, plot_trajectories
from ..comparison.runs import Run, load_runs
from ..deltas.verification import Verification, verify
from ..evaluation.tofu import evaluate_rows, write_records
from ..files.atomic import write_json
from ..files.checkpoint import Checkpoint
from ..files.run_folder import DELTA_FILE, MASK_FILE
from ..masks.mask import WeightMask
from ..objectives.npo import NPOConfig, NPOTrainer
from ..trainers.log_lines import PrintedLines
from .people import split_rows
from .stages import StageBar, Stages
from .tiny_model import build_model, build_tokenizer, train
from .worlds import WORLDS, Arm, World

NUM_PEOPLE = 60
MAX_STEPS = 200
FORGOTTEN = 0.1  # answer probability at which the runs are compared
WATCHED = 48  # rows of each set, of which the curves are
SECONDS = {"people": 22, "records": 35}  # of learning, on an idle core
SECONDS_TO_UNLEARN = 13


@dataclass(frozen=True)
class Forgetting:
    """
    Run of the demo.

    Args:
        world, name (`str`): Keys of `WORLDS` and of its arms.
        arm ([`~wagle_trl.demo.worlds.Arm`]): Options of the run.
        run ([`~comparison.runs.Run`]): What the files in its folder say.
        optimizer_bytes (`int`): Bytes of the optimizer's state.
        answers (`list[dict]`): A record per forget row, with the answer that the unlearned model generates.
        proof ([`~deltas.verification.Verification`], *optional*): Comparison with the base; `None` without a mask.
    """

    world: str
    name: str
    arm: Arm
    run: Run
    optimizer_bytes: int
    answers: list[dict[str, Any]]
    proof: Verification | None

    def numbers(self) -> dict[str, Any]:
        """Numbers of the run, flat."""
        known = self.run.numbers()
        sets = ("forget", "retain", "unseen_retain")
        return {
            "world": self.world,
            "run": self.name,
            "learning_rate": self.arm.learning_rate,
            "retain_weight": self.arm.retain_weight,
            "steps": known["steps"],
            **{f"{name}_before": self.run.history.before[name] for name in sets},
            **{f"{name}_probability": known[f"final_{name}"] for name in sets},
            "unseen_retain_at_depth": known.get(f"unseen_retain_at_{FORGOTTEN}"),
            "forget_rougeL": sum(record["rougeL_recall"] for record in self.answers) / len(self.answers),
            "optimizer_bytes": self.optimizer_bytes,
            "delta_bytes": _size(self.run.folder / DELTA_FILE),
            "model_bytes": _size(self.run.folder / "model.safetensors"),
            "verified": None if self.proof is None else self.proof.passed,
        }


def run_demo(output_dir: str | Path, seed: int = 0) -> list[Forgetting]:
    """
    Run the demo on one thread, and write its folder: for each world the rows, the base model, a run per arm (as
    `wagle npo` writes it) and pictures of their curves and of what they cost.

    Args:
        output_dir (`str` or `pathlib.Path`): Folder to write.
        seed (`int`, *optional*, defaults to `0`): Seed of people, weights and batches.

    Returns:
        `list[Forgetting]`: The runs.
    """
    folder = Path(output_dir)
    seconds = {}
    for name, world in WORLDS.items():
        seconds |= {name: SECONDS[name]} | {f"{name}/{arm}": SECONDS_TO_UNLEARN for arm in world.arms}
    stages, done = Stages(seconds), []
    with _one_thread():  # two wait for each other on models this small, beside another process for most of the time
        for name, world in WORLDS.items():
            done += _World(folder / name, name, world, seed, stages).runs()
    write_json(folder / "report.json", [forgetting.numbers() for forgetting in done])
    return done


class _World:
    """What the runs in one world share."""

    def __init__(self, folder: Path, name: str, world: World, seed: int, stages: Stages):
        self.folder, self.name, self.world, self.seed, self.stages = folder, name, world, seed, stages
        folder.mkdir(parents=True, exist_ok=True)
        self.splits = split_rows(world.make_rows(NUM_PEOPLE, seed))
        for split, rows in self.splits.items():
            write_records(rows, folder / f"{split}.jsonl")

    def runs(self) -> list[Forgetting]:
        """Learn, unlearn with every arm, and draw the curves."""
        tokenizer = self._learn()
        done = [self._unlearn(name, arm, tokenizer) for name, arm in self.world.arms.items()]
        runs = load_runs([run.run.folder for run in done])
        plot_trajectories(runs, self.folder / "curves.png")
        plot_trade_off(runs, self.folder / "trade_off.png")
        return done

    def _learn(self) -> PreTrainedTokenizerFast:
        rows = [row for part in self.splits.values() for row in part]
        self.stages.begin(self.name, f"{self.name}: a small model learns {len(rows)} answers by heart")
        texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
        tokenizer = build_tokenizer(texts, split_digits=self.world.split_digits)
        model = build_model(tokenizer, self.seed)
        train(model, tokenizer, rows, seed=self.seed, epochs=self.world.epochs)
        model.save_pretrained(self.folder / "base")
        tokenizer.save_pretrained(self.folder / "base")
        return tokenizer

    def _unlearn(self, name: str, arm: Arm, tokenizer: PreTrainedTokenizerFast) -> Forgetting:
        weights = (
            "all weights" if arm.mask is None else f"{arm.mask.mask_density:.0%} of the weights, {arm.mask.mask_score}"
        )
        text = f"{self.name}: it forgets {len(self.splits['forget'])} of them ({name}: {weights})"
        self.stages.begin(f"{self.name}/{name}", text)
        sets = {split: Dataset.from_list(rows) for split, rows in self.splits.items()}
        args = NPOConfig(
            output_dir=str(self.folder / name),
            learning_rate=arm.learning_rate,
            retain_weight=arm.retain_weight,
            max_steps=MAX_STEPS,
            stop_forget_probability=FORGOTTEN,
            trajectory_steps=5,
            trajectory_rows=WATCHED,
            save_delta=arm.mask is not None,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,  # the stage has its own bar, and no plan of the memory
            dataloader_pin_memory=False,  # warns on machines without an accelerator
            seed=self.seed,
        )
        trainer = NPOTrainer(
            str(self.folder / "base"),
            args,
            train_dataset=sets["forget"],
            retain_dataset=sets["retain"],
            eval_dataset={"unseen_retain": sets["unseen_retain"]},
            processing_class=tokenizer,
            mask_config=arm.mask,
        )
        trainer.remove_callback(PrintedLines)
        trainer.add_callback(StageBar)
        trainer.train()
        self.stages.end(trainer.verdict)
        trainer.save_model()
        trainer.create_model_card()
        assert isinstance(trainer.model, PreTrainedModel) and trainer.optimizer is not None  # it has trained all of it
        answers = evaluate_rows(
            trainer.model, tokenizer, self.splits["forget"], "forget", max_new_tokens=24, progress=False
        )
        (run,) = load_runs([self.folder / name])
        return Forgetting(
            self.name, name, arm, run, optimizer_bytes(trainer.optimizer), answers, self._proof(run.folder)
        )

    def _proof(self, folder: Path) -> Verification | None:
        if not (folder / MASK_FILE).exists():
            return None
        return verify(Checkpoint(self.folder / "base"), Checkpoint(folder), WeightMask.load(folder), progress=False)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Count the bytes of the tensors that an optimizer keeps from step to step."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
