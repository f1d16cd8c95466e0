"""The demo: a model learns facts about made-up people by heart and forgets three of them, and all losses are shown."""

import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.table import Table
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

from ..attribution.config import MaskConfig
from ..attribution.report import mask_report, plot_mask, report_tables
from ..data.formats import to_trl
from ..evaluation.drift import weights_changed
from ..evaluation.metrics import summarize
from ..evaluation.tofu import evaluate_rows, write_records
from ..files.atomic import write_json
from ..unlearning.npo import NPOConfig, NPOTrainer
from .people import people_rows, split_rows
from .tiny_model import build_model, build_tokenizer, train

DENSITY = 0.05
MASKS = {
    "dense": None,
    "random": MaskConfig(mask_score="random", mask_density=DENSITY),
    "masked": MaskConfig(mask_density=DENSITY),
}
# A twentieth of the weights needs a larger step than all of them
LEARNING_RATES = {"dense": 3e-4, "random": 2e-3, "masked": 2e-3}
STEPS = 200
RETAIN_WEIGHT = 5.0
_SETS = ("forget", "retain", "unseen_retain")


def run_demo(output_dir: str | Path, seed: int = 0) -> tuple[list[dict[str, Any]], list[Table]]:
    """
    Run the demo and write its folder: the unlearned model with mask, plot and report, the base model, the data.

    Args:
        output_dir (`str` or `pathlib.Path`): Folder to write.
        seed (`int`, *optional*, defaults to `0`): Seed of people, weights and batches.

    Returns:
        `tuple[list[dict], list[rich.table.Table]]`: One row per model, and tables to print.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    splits = split_rows(people_rows(seed=seed))
    for name, rows in splits.items():
        write_records(rows, folder / f"{name}.jsonl")
    known = splits["retain"] + splits["unseen_retain"]
    tokenizer = build_tokenizer(
        [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in splits["forget"] + known]
    )

    demo = _Demo(folder, seed, tokenizer, splits)
    base = demo.learn("base", splits["forget"] + known)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    demo.start = {name: weight.clone() for name, weight in base.state_dict().items()}
    demo.measure("base", base)
    demo.measure("oracle", demo.learn("oracle", known))
    trainers = {run: demo.unlearn(run) for run in MASKS}
    masked = trainers["masked"]
    masked.save_model(str(folder))
    assert masked.mask is not None  # training computed it
    plot_mask(masked.mask, folder / "wagle_mask.png")
    write_json(folder / "report.json", demo.rows)
    return demo.rows, [*report_tables(mask_report(masked.mask)), comparison_table(demo.rows)]


class _Demo:
    """The setup that all runs share, and the rows that they add to the comparison."""

    def __init__(self, folder: Path, seed: int, tokenizer: PreTrainedTokenizerFast, splits: dict[str, list[dict]]):
        self.folder, self.seed, self.tokenizer, self.splits = folder, seed, tokenizer, splits
        self.start: dict[str, torch.Tensor] = {}
        self.rows: list[dict[str, Any]] = []
        self.costs: dict[str, dict[str, float]] = {}

    def learn(self, run: str, rows: list[dict]) -> LlamaForCausalLM:
        """Train a model on `rows` from scratch."""
        begin = time.perf_counter()
        model = build_model(self.tokenizer, self.seed)
        trainer = train(model, self.tokenizer, rows, seed=self.seed, description=f"Training the {run} model")
        self._record_cost(run, trainer, begin)
        return model

    def unlearn(self, run: str) -> NPOTrainer:
        """Unlearn from the base model with NPO and the mask of `run`."""
        print(f"Unlearning: {run}")
        model = build_model(self.tokenizer)
        model.load_state_dict(self.start)
        begin = time.perf_counter()
        trainer = NPOTrainer(
            model,
            self._options(run),
            train_dataset=self._dataset("forget"),
            retain_dataset=self._dataset("retain"),
            processing_class=self.tokenizer,
            mask_config=MASKS[run],
        )
        trainer.train()
        self._record_cost(run, trainer, begin)
        self.measure(run, model)
        return trainer

    def _options(self, run: str) -> NPOConfig:
        return NPOConfig(
            output_dir=str(self.folder),
            learning_rate=LEARNING_RATES[run],
            max_steps=STEPS,
            retain_weight=RETAIN_WEIGHT,
            per_device_train_batch_size=16,
            weight_decay=0.0,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=50,
            seed=self.seed,
            dataloader_pin_memory=False,
        )

    def _dataset(self, split: str) -> Dataset:
        return to_trl(Dataset.from_list(self.splits[split]), self.tokenizer)

    def _record_cost(self, run: str, trainer: Trainer, begin: float) -> None:
        assert isinstance(trainer.optimizer, torch.optim.Optimizer)  # training creates it
        self.costs[run] = {
            "optimizer_bytes": optimizer_bytes(trainer.optimizer),
            "seconds": time.perf_counter() - begin,
        }

    def measure(self, run: str, model: LlamaForCausalLM) -> None:
        """Evaluate the model of `run` and add its row."""
        summary = {}
        for name in _SETS:
            summary |= summarize(
                evaluate_rows(model, self.tokenizer, self.splits[name], name, batch_size=64, max_new_tokens=24)
            )
        self.rows.append(
            {
                "run": run,
                **{f"{name}_probability": summary[f"{name}_prob"] for name in _SETS},
                **{f"{name}_rougeL": summary[f"{name}_rougeL_recall"] for name in _SETS},
                "weights_changed": weights_changed(model, self.start).share,
                **self.costs[run],
            }
        )


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Count the bytes of the tensors that an optimizer keeps from step to step."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    """Make the table with one line per run: probability and ROUGE-L on every set, and the costs."""
    table = Table(title="Answer probability / ROUGE-L")
    for column in ("run", "forget", "retain", "unseen retain", "weights changed", "optimizer state", "seconds"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for row in rows:
        answers = [f"{row[f'{name}_probability']:.3f} / {row[f'{name}_rougeL']:.3f}" for name in _SETS]
        cost = [f"{row['weights_changed']:.1%}", f"{row['optimizer_bytes'] / 1e6:.2f} MB", f"{row['seconds']:.1f}"]
        table.add_row(row["run"], *answers, *cost)
    return table
