"""Three kinds of data that models of about 5 M weights know by heart, to forget some of each.

A world is a folder as a user has it: a base model with its tokenizer, and files of rows to forget, to keep ("retain"),
and to keep without taking part in attribution or training ("unseen"), of other people or authors. Every seed has other
initial weights, another order of training, and other rows.
"""

import os
from collections.abc import Callable
from pathlib import Path

from wagle_trl.data.rows import read_jsonl
from wagle_trl.demo.people import people_rows, rows_by_group
from wagle_trl.demo.records import record_rows
from wagle_trl.demo.tiny_model import build_model, build_tokenizer, train
from wagle_trl.evaluation.tofu import write_records

MODEL = dict(
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=4,
    max_position_embeddings=256,
    tie_word_embeddings=False,
)
TRAINING = {
    "people": dict(epochs=50, batch_size=16),
    "records": dict(epochs=40, batch_size=16),
    "tofu": dict(epochs=20, batch_size=8),
}

Row = dict[str, str]


def people(seed: int, tofu_dir: Path) -> dict[str, list[Row]]:
    """Made-up people of `wagle demo`: 24 rows to forget."""
    return rows_by_group(people_rows(84, seed), {"forget": 4, "retain": 40, "unseen": 40})


def records(seed: int, tofu_dir: Path) -> dict[str, list[Row]]:
    """Personal records of `wagle demo`: 40 rows to forget, whose answers are numbers."""
    return rows_by_group(record_rows(110, seed), {"forget": 10, "retain": 50, "unseen": 50})


def tofu(seed: int, tofu_dir: Path) -> dict[str, list[Row]]:
    """TOFU ([2401.06121](https://arxiv.org/abs/2401.06121)): the 40 rows of two authors to forget."""
    forget = read_jsonl(tofu_dir / "forget10_perturbed.jsonl")
    retain = read_jsonl(tofu_dir / "retain_perturbed.jsonl")
    end = len(forget) - 40 * seed
    return {"forget": forget[end - 40 : end], "retain": retain[:200], "unseen": retain[200:]}


WORLDS: dict[str, Callable[[int, Path], dict[str, list[Row]]]] = {"people": people, "records": records, "tofu": tofu}


def world(name: str, seed: int, cache: Path, tofu_dir: Path) -> Path:
    """
    Folder of a world: `base`, `forget.jsonl`, `retain.jsonl` and `unseen.jsonl`; made when first asked for.

    Args:
        name (`str`): Key of `WORLDS`.
        seed (`int`): Which one.
        cache (`pathlib.Path`): Folder of all worlds.
        tofu_dir (`pathlib.Path`): Folder with TOFU's files.
    """
    folder = cache / f"{name}-{seed}"
    if not folder.exists():
        scratch = cache / f"{name}-{seed}-{os.getpid()}"
        rows = {part: _pairs(found) for part, found in WORLDS[name](seed, tofu_dir).items()}
        scratch.mkdir(parents=True)
        for part, found in rows.items():
            write_records(found, scratch / f"{part}.jsonl")
        known = [row for part in ("retain", "unseen", "forget") for row in rows[part]]
        texts = read_jsonl(tofu_dir / "full.jsonl") if name == "tofu" else known
        tokenizer = build_tokenizer(
            [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in texts],
            vocab_size=4096,
            split_digits=name == "records",
        )
        model = build_model(tokenizer, seed=seed, **MODEL)
        train(
            model,
            tokenizer,
            known,
            seed=seed,
            description=folder.name,
            learning_rate=1e-3,
            max_length=256,
            **TRAINING[name],
        )
        model.save_pretrained(scratch / "base")
        tokenizer.save_pretrained(scratch / "base")
        scratch.rename(folder)
    return folder


def _pairs(rows: list[Row]) -> list[Row]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]
