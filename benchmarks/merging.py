"""Forget requests unlearned apart from each other and merged, beside one run for all and one run after the other.

The small Llama of `wagle demo` learns made-up people by heart. Three requests of two people each are unlearned with NPO
from that one base; their deltas are merged, and each is revoked by merging the other two. Mean answer probability of
every set; an answer that is known has one near 1.

    python -m benchmarks merging

A run that was cut off goes on with the next seed or score that the output does not have.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.environment import environment, write_result
from wagle_trl.attribution.config import MaskConfig
from wagle_trl.data.formats import to_trl
from wagle_trl.deltas.delta import SparseDelta, weights_fingerprint
from wagle_trl.deltas.merging import MergeResult, merge_deltas
from wagle_trl.demo.people import people_rows, rows_by_group
from wagle_trl.demo.tiny_model import build_model, build_tokenizer, train
from wagle_trl.evaluation.metrics import summarize
from wagle_trl.evaluation.tofu import evaluate_rows
from wagle_trl.objectives.npo import NPOConfig, NPOTrainer

DENSITY = 0.05
LEARNING_RATE = 2e-3
RETAIN_WEIGHT = 5.0
STEPS = 200
PEOPLE = 66
PEOPLE_A_REQUEST = 2
REQUESTS = ("request 1", "request 2", "request 3")
SCORES = ("wagle", "fisher_ratio", "random")
RESULT = Path(__file__).parent / "results" / "merging.json"


def split(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Rows of each request, and of the other people by halves: shown while unlearning, and not."""
    half = (PEOPLE - PEOPLE_A_REQUEST * len(REQUESTS)) // 2
    return rows_by_group(rows, dict.fromkeys(REQUESTS, PEOPLE_A_REQUEST) | {"retain": half, "unseen retain": half})


class World:
    """The base model of a seed, and what is done to it."""

    def __init__(self, seed: int):
        self.seed = seed
        self.sets = split(people_rows(PEOPLE, seed))
        rows = [row for rows in self.sets.values() for row in rows]
        self.tokenizer = build_tokenizer([f"Question: {r['question']}\nAnswer: {r['answer']}" for r in rows])
        self.base = train(build_model(self.tokenizer, seed), self.tokenizer, rows, seed=seed).model
        self.weights = {name: weight.clone() for name, weight in self.base.state_dict().items()}
        self.fingerprint = weights_fingerprint(self.base)

    def model(self, weights: dict[str, Tensor]) -> LlamaForCausalLM:
        """A new model: TRL binds the forward pass of the one that it trained, and a deep copy would run that."""
        model = build_model(self.tokenizer)
        model.load_state_dict(weights)
        return model

    def unlearn(self, requests: tuple[str, ...], score: str, start: dict[str, Tensor] | None = None) -> NPOTrainer:
        """NPO on the rows of some requests, from the base or weights after it."""
        rows = {"forget": [row for name in requests for row in self.sets[name]], "retain": self.sets["retain"]}
        forget, retain = (to_trl(Dataset.from_list(rows[name]), self.tokenizer) for name in ("forget", "retain"))
        with TemporaryDirectory() as folder:
            trainer = NPOTrainer(
                self.model(start or self.weights),
                self._options(folder),
                train_dataset=forget,
                retain_dataset=retain,
                processing_class=self.tokenizer,
                mask_config=MaskConfig(mask_score=score, mask_density=DENSITY, mask_seed=REQUESTS.index(requests[0])),
            )
            trainer.train()
        return trainer

    def _options(self, folder: str) -> NPOConfig:
        return NPOConfig(
            output_dir=folder,
            learning_rate=LEARNING_RATE,
            max_steps=STEPS,
            retain_weight=RETAIN_WEIGHT,
            per_device_train_batch_size=16,
            weight_decay=0.0,
            gradient_checkpointing=False,
            trajectory_steps=0,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            seed=self.seed,
            dataloader_pin_memory=False,
        )

    def apply(self, delta: SparseDelta) -> LlamaForCausalLM:
        return delta.apply(self.model(self.weights))

    def row(self, score: str, arm: str, model: LlamaForCausalLM, merged: MergeResult | None = None) -> dict[str, Any]:
        """Mean answer probability of every set, and where merged deltas met."""
        probabilities = {
            name: summarize(evaluate_rows(model, self.tokenizer, rows, "forget", generate=False))["forget_prob"]
            for name, rows in self.sets.items()
        }
        where = {"seed": self.seed, "score": score, "arm": arm, "commit": environment()["commit"]}
        if merged is None:
            return where | probabilities
        counts = {"shared": sum(merged.shared.values()), "conflicts": sum(merged.conflicts.values())}
        return where | probabilities | {"num_selected": merged.delta.num_selected} | counts


def arms(world: World, score: str) -> Iterator[dict[str, Any]]:
    """A row for every way to meet the requests."""
    trainers = {name: world.unlearn((name,), score) for name in REQUESTS}
    deltas = {
        name: SparseDelta.from_model(trainer.model, trainer.mask, world.fingerprint)
        for name, trainer in trainers.items()
    }
    for name, trainer in trainers.items():
        yield world.row(score, f"{name} alone", trainer.model)
    for rule, weights in {"last wins": None, "mean": [1.0] * len(deltas)}.items():
        merged = merge_deltas(list(deltas.values()), weights)
        yield world.row(score, f"merged, {rule}", world.apply(merged.delta), merged)
    for name in REQUESTS:
        others = [delta for other, delta in deltas.items() if other != name]
        merged = merge_deltas(others, [1.0] * len(others))
        yield world.row(score, f"{name} revoked", world.apply(merged.delta), merged)
    yield world.row(score, "one run for all", world.unlearn(REQUESTS, score).model)
    weights = world.weights
    for name in REQUESTS:
        trainer = world.unlearn((name,), score, weights)
        weights = trainer.model.state_dict()
    yield world.row(score, "one run after the other", trainer.model)


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds; of arms that name a request, over these, too: the request itself, and the others."""
    grouped: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in rows:
        own = next((name for name in REQUESTS if row["arm"].startswith(name)), None)
        arm = row["arm"].replace(own, "a request") if own else row["arm"]
        others = statistics.mean(row[name] for name in REQUESTS if name != own)
        numbers = {"the request": row[own] if own else None, "the others": others}
        numbers |= {name: row[name] for name in ("retain", "unseen retain")}
        numbers["conflicts"] = row["conflicts"] / row["num_selected"] if "conflicts" in row else None
        grouped.setdefault((row["score"], arm), []).append(numbers)
    return [
        {"score": score, "arm": arm, "runs": len(found)}
        | {key: statistics.mean(n[key] for n in found) for key in found[0] if found[0][key] is not None}
        for (score, arm), found in grouped.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scores", nargs="+", default=list(SCORES))
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    for seed in args.seeds:
        done = {row["score"] for row in rows if row["seed"] == seed}
        scores = [score for score in args.scores if score not in done]
        if not scores:
            continue
        world = World(seed)
        found = [] if done else [world.row("base", "base", world.base)]
        for score in scores:
            found += arms(world, score)
            rows, found = rows + found, []
            write_result(args.output, {"density": DENSITY, "steps": STEPS, "mean": means(rows), "rows": rows})
    print(json.dumps(means(rows), indent=2))


if __name__ == "__main__":
    main()
