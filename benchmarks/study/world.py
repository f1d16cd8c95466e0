"""What the study plays in: a Llama of 5.5 M weights that knows a forget part and a retain part of TOFU by heart.

Every seed has a world of its own: other initial weights, another order of training, and another pair of authors to
forget. Half of the retain rows ("unseen") take part in neither attribution nor unlearning.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from wagle_trl.attribution.statistics import accumulate_statistic
from wagle_trl.data.formats import to_trl
from wagle_trl.data.rows import read_jsonl
from wagle_trl.data.tokenization import tokenize_row
from wagle_trl.demo.tiny_model import build_model, build_tokenizer, train
from wagle_trl.evaluation.attacks import paraphrased
from wagle_trl.evaluation.inference import IGNORED, answer_losses, pad
from wagle_trl.evaluation.memorization import memorization_summary
from wagle_trl.evaluation.metrics import answer_probability, truth_ratios
from wagle_trl.evaluation.tofu import evaluate_rows
from wagle_trl.files.atomic import atomic_path
from wagle_trl.masks.scope import scope_parameters

FORGET_ROWS = 40  # two authors, a tenth of the retain rows
SEEN_ROWS = UNSEEN_ROWS = 200
MODEL = dict(
    hidden_size=256, intermediate_size=768, num_hidden_layers=4, max_position_embeddings=256, tie_word_embeddings=False
)
TRAINING = dict(epochs=20, learning_rate=1e-3, batch_size=8, max_length=256)
# name -> (set, squared, sum_batches), as `wagle_trl.attribution.statistics.accumulate_statistic` takes them
STATISTICS = {
    "g_forget": ("forget", False, False),
    "g_retain": ("retain", False, False),
    "sum_forget": ("forget", False, True),
    "sum_retain": ("retain", False, True),
    "F_forget": ("forget", True, False),
    "F_retain": ("retain", True, False),
}
ATTRIBUTION_BATCH = 20

Row = dict[str, str]


@dataclass(frozen=True)
class World:
    """
    The model, rows and statistics of a seed, made when first asked for and kept in a folder.

    Args:
        tofu_dir (`pathlib.Path`): Folder with TOFU's files.
        cache (`pathlib.Path`): Folder for models and statistics.
        seed (`int`): Which world.
    """

    tofu_dir: Path
    cache: Path
    seed: int

    @property
    def folder(self) -> Path:
        return self.cache / f"world-{self.seed}"

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """Set name -> rows; those of the forget set bring `paraphrased_question` and `perturbed_answer`."""
        retain = read_jsonl(self.tofu_dir / "retain_perturbed.jsonl")
        forget = read_jsonl(self.tofu_dir / "forget10_perturbed.jsonl")
        end = len(forget) - FORGET_ROWS * self.seed
        return {
            "forget": forget[end - FORGET_ROWS : end],
            "retain": retain[:SEEN_ROWS],
            "unseen_retain": retain[SEEN_ROWS : SEEN_ROWS + UNSEEN_ROWS],
        }

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """One for all worlds, learned from all of TOFU."""
        folder = self.cache / "tokenizer"
        if not folder.exists():
            texts = [f"{row['question']} {row['answer']}" for row in read_jsonl(self.tofu_dir / "full.jsonl")]
            build_tokenizer(texts, vocab_size=4096).save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)

    def dataset(self, name: str) -> Dataset:
        """A set as trainers take it."""
        rows = [{"question": row["question"], "answer": row["answer"]} for row in self.rows[name]]
        return to_trl(Dataset.from_list(rows), self.tokenizer)

    def model(self) -> LlamaForCausalLM:
        """A fresh copy of the model that knows everything."""
        return self._model("base", ("retain", "unseen_retain", "forget"))

    def oracle(self) -> LlamaForCausalLM:
        """The same initial weights, trained on the retain rows alone."""
        return self._model("oracle", ("retain", "unseen_retain"))

    def _model(self, name: str, sets: tuple[str, ...]) -> LlamaForCausalLM:
        folder = self.folder / name
        if not folder.exists():
            model = build_model(self.tokenizer, seed=self.seed, **MODEL)
            rows = [row for part in sets for row in self.rows[part]]
            train(model, self.tokenizer, rows, seed=self.seed, description=f"{name} {self.seed}", **TRAINING)
            scratch = self.folder / f"{name}-{os.getpid()}"
            model.save_pretrained(scratch)
            scratch.rename(folder)
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def statistic(self, name: str) -> dict[str, torch.Tensor]:
        """A row of `STATISTICS`, of all weights of the base model."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            found = self.accumulate(name, self.model())  # which makes the folder
            with atomic_path(path) as temporary:
                save_file(found, temporary)
        return load_file(path)

    def accumulate(self, name: str, model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
        """A row of `STATISTICS`, of all weights of a model."""
        rows, squared, sum_batches = STATISTICS[name]
        parameters = scope_parameters(model, ["*"])
        return accumulate_statistic(model, parameters, self.batches(rows), squared=squared, sum_batches=sum_batches)

    def prepare(self) -> None:
        """Make the base model and all statistics."""
        for name in STATISTICS:
            self.statistic(name)

    def batches(self, name: str) -> list[dict[str, torch.Tensor]]:
        """A set in padded batches, for attribution."""
        tokenized = [tokenize_row(row, self.tokenizer) for row in self.rows[name]]
        return [_pad(tokenized[i : i + ATTRIBUTION_BATCH]) for i in range(0, len(tokenized), ATTRIBUTION_BATCH)]

    def knowledge(self, model: LlamaForCausalLM) -> dict[str, Any]:
        """
        Mean answer probability of all forget rows, of the same asked in other words, and of all unseen retain rows;
        truth ratios, exact memorization and extraction strength of the forget rows.
        """
        records = evaluate_rows(model, self.tokenizer, self.rows["forget"], "forget", generate=False, progress=False)
        return {
            "forget": float(answer_probability([record["avg_gt_loss"] for record in records]).mean()),
            "paraphrase": self.probability(model, paraphrased(self.rows["forget"], "forget")),
            "unseen_retain": self.probability(model, self.rows["unseen_retain"]),
            **memorization_summary(records),
            "truth_ratios": [round(ratio, 6) for ratio in truth_ratios(records).tolist()],
        }

    def probability(self, model: LlamaForCausalLM, rows: list[Row]) -> float:
        """Mean answer probability of rows."""
        tokenized = [tokenize_row({"question": r["question"], "answer": r["answer"]}, self.tokenizer) for r in rows]
        losses, _ = answer_losses(model, tokenized, 16, self.tokenizer.pad_token_id)
        return float(answer_probability(losses).mean())

    def report(self) -> dict:
        """What base model and oracle know, kept in the folder."""
        path = self.folder / "worlds.json"
        if not path.exists():
            known = {
                name: self.knowledge(model) for name, model in (("base", self.model()), ("oracle", self.oracle()))
            }
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps({"seed": self.seed, **known}))
        return json.loads(path.read_text())


@dataclass(frozen=True)
class MovedWorld(World):
    """
    A world whose model has been trained on; nothing of it is kept on disk.

    Args:
        state (`dict[str, torch.Tensor]`): The weights as they are now.
    """

    state: dict[str, torch.Tensor]

    def model(self) -> LlamaForCausalLM:
        model = super().model()
        model.load_state_dict(self.state)
        return model

    def statistic(self, name: str) -> dict[str, torch.Tensor]:
        return self.accumulate(name, self.model())


def _pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": pad((row["input_ids"] for row in rows), 0, "right"),
        "labels": pad((row["labels"] for row in rows), IGNORED, "right"),
        "attention_mask": pad(([1] * len(row["input_ids"]) for row in rows), 0, "right"),
    }
