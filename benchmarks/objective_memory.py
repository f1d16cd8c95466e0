"""Peak memory and time per step of every objective, beside NPO's.

    python -m benchmarks objective_memory

Memory is counted in real trainings of a Llama shape of 1.1 B weights in bf16, where 5 % of the weights train, by
[`~wagle_trl.memory.allocations.Allocations`] on a CPU. Matrix products and attention are not computed there: they return zeros
of the right shape, which changes no allocation and leaves steps of seconds. Beside the peak stand what is held between steps,
what the plan says before, and what it says of a GPU, where kernels need fewer copies of the logits.

Time is that of a small model in fp32, all of it computed: the median over rounds of the ratio to NPO within the same round,
since other work on a machine comes and goes. References that are computed once, before the first step, take no part in it.
"""

import argparse
import gc
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from benchmarks.environment import write_result
from benchmarks.memory import SHAPES, llama, weights
from benchmarks.memory_recipes import PROMPT_TOKENS, StepClock
from benchmarks.tables import markdown
from wagle_trl import MaskConfig, WeightMask
from wagle_trl.memory.allocations import Allocations
from wagle_trl.objectives.names import OBJECTIVES
from wagle_trl.planning.planner import CONTEXT_BYTES, Planner
from wagle_trl.unlearning.base import UnlearningTrainer
from wagle_trl.unlearning.planned_step import planned_losses

RESULT = Path(__file__).parent / "results" / "objective_memory.json"
DENSITY, ROWS, LENGTH = 0.05, 4, 256
SMALL = llama(2000, 384, 1056, 4, 6, 6)
SMALL_LENGTH = 64
SWAP = {"reference_states": "swap"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "npo": ("npo", {}),
    "npo, KL by swap": ("npo", {"retain_loss": "kl", **SWAP}),
    "npo, KL stored": ("npo", {"retain_loss": "kl", "reference_states": "stored"}),
    "npo, answer preservation": ("npo", {"retain_loss": "answer_preservation"}),
    "undial, KL by swap": ("undial", {"retain_loss": "kl", **SWAP}),
    "me, model to uniform": ("me", {"direction": "model_to_uniform"}),
} | {name: (name, SWAP if name == "undial" else {}) for name in OBJECTIVES if name != "npo"}

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default,
    aten.mm.out,
    aten.addmm.default,
    aten.addmm.out,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


class NoProducts(TorchDispatchMode):
    """Matrix products and attention return zeros, with the shapes, strides and types that torch says they have."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        if kwargs and "out" in kwargs:
            return kwargs["out"].zero_()
        outputs = func(*tree_map_only(torch.Tensor, lambda t: t.to("meta"), args), **(kwargs or {}))
        return tree_map_only(
            torch.Tensor, lambda t: torch.empty_strided(t.size(), t.stride(), dtype=t.dtype).zero_(), outputs
        )


class Held(TrainerCallback):
    """Notes what is left after a step: a second model would be."""

    def __init__(self, memory: Allocations):
        self.memory, self.bytes = memory, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.bytes = self.memory.current


def build(shape: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    special = dict(pad_token_id=0, bos_token_id=None, eos_token_id=2)
    return AutoModelForCausalLM.from_config(LlamaConfig(**shape, **special), dtype=dtype)


def dataset(vocabulary: int, length: int, seed: int) -> Dataset:
    """Random rows of one length, each with another answer; the end of sequence is a token, too."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> str:
        return " ".join(f"t{i}" for i in torch.randint(3, vocabulary, (count,), generator=generator).tolist())

    sizes = {
        "prompt": PROMPT_TOKENS,
        "completion": length - PROMPT_TOKENS - 1,
        "alternate": length - PROMPT_TOKENS - 1,
    }
    return Dataset.from_list([{name: words(size) for name, size in sizes.items()} for _ in range(2 * ROWS)])


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word per token. Special tokens are no part of a word."""
    special = ["<pad>", "<unk>", "</s>"]
    names = special + [f"t{i}" for i in range(len(special), vocabulary)]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def make_trainer(
    variant: str, model: PreTrainedModel, mask: WeightMask | None, folder: str, length: int, steps: int, **options
) -> UnlearningTrainer:
    name, own = VARIANTS[variant]
    trainer, vocabulary = OBJECTIVES[name], model.config.vocab_size
    args = dict(
        output_dir=folder,
        max_steps=steps,
        max_length=length,
        per_device_train_batch_size=ROWS,
        optim="adamw_8bit",
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        trajectory_steps=0,
    )
    return trainer(
        model,
        trainer.config_class(**args, **own),
        train_dataset=dataset(vocabulary, length, seed=0),
        retain_dataset=dataset(vocabulary, length, seed=1),
        processing_class=tokenizer(vocabulary),
        mask=mask,
        mask_config=MaskConfig("random", DENSITY) if mask is None else None,
        **options,
    )


# Memory


def counted(variant: str, mask: WeightMask | None, shape: dict[str, Any]) -> tuple[dict[str, Any], WeightMask]:
    """Row of an objective, and the mask, which the next may use: all start from the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        model = build(shape, torch.bfloat16)
        trainer = make_trainer(variant, model, mask, folder, LENGTH, steps=2)
        mask = trainer.mask or trainer.compute_mask()
        trainer.mask, trainer.mask_config = mask, None
        setup, planner = trainer.memory._setup(), trainer.memory._planner()
        on_gpu = planned_losses(type(trainer), trainer.args, answer_length=trainer._answer_length)
        gpu = Planner(planner.build, planner.losses, True, training_losses=on_gpu).plan(setup)
        plan = planner.plan(setup)
        gc.collect()
        with NoProducts(), Allocations([*weights(model), *mask.bits.values()]) as memory:
            trainer.add_callback(held := Held(memory))
            trainer.train()
    row = {
        "rows_per_sample": setup.rows_per_sample,
        "longest_row": setup.max_length,
        "weights_bytes": sum(tensor.nbytes for tensor in weights(model)),
        "selected": mask.num_selected,
        "peak_bytes": memory.peak,
        "held_bytes": held.bytes,
        "predicted_bytes": plan.training_peak_bytes,
        "error": plan.training_peak_bytes / memory.peak - 1,
        "plan": plan.training,
        "predicted_on_gpu_bytes": gpu.training_peak_bytes - CONTEXT_BYTES,
    }
    return row, mask


def with_npo(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each with its share of NPO's memory, and what it holds between steps that NPO does not."""
    npo = rows["npo"]
    for row in rows.values():
        row |= {
            "of_npo": row["peak_bytes"] / npo["peak_bytes"],
            "of_npo_on_gpu": row["predicted_on_gpu_bytes"] / npo["predicted_on_gpu_bytes"],
            "held_beyond_npo_bytes": row["held_bytes"] - npo["held_bytes"],
        }
    return rows


# Time


def step_ratios(variants: list[str], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Time per step, in seconds and of NPO's in the same round: medians over rounds, in which all take turns."""
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for variant in variants:
            clock, place = StepClock(), str(Path(folder) / variant.replace(" ", "_"))
            model = build(SMALL, torch.float32)
            trainers[variant] = (
                clock,
                make_trainer(variant, model, None, place, SMALL_LENGTH, steps, callbacks=[clock]),
            )
        for variant, (clock, trainer) in list(trainers.items()) * rounds:
            clock.ends.clear()
            trainer.train()
            assert clock.seconds is not None  # of more than one step
            seconds[variant].append(clock.seconds)
    ratios = {v: [own / npo for own, npo in zip(values, seconds["npo"])] for v, values in seconds.items()}
    return {
        variant: {
            "seconds": statistics.median(seconds[variant]),
            "time_of_npo": statistics.median(values),
            "time_of_npo_range": [min(values), max(values)],
        }
        for variant, values in ratios.items()
    }


# Output


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Rows by objective, in Markdown."""
    header = [
        "Objective",
        "rows",
        "peak, GB",
        "of NPO's",
        "held more, GB",
        "plan's error",
        "plan of a GPU, GB",
        "of NPO's",
    ]
    body = [
        [
            variant,
            row["rows_per_sample"],
            f"{row['peak_bytes'] / 1e9:.2f}",
            f"{row['of_npo']:.2f}",
            f"{row['held_beyond_npo_bytes'] / 1e9:.3f}",
            f"{100 * row['error']:+.2f} %",
            f"{row['predicted_on_gpu_bytes'] / 1e9:.2f}",
            f"{row['of_npo_on_gpu']:.2f}",
            f"{row['time_of_npo']:.2f}",
        ]
        for variant, row in rows.items()
    ]
    return markdown([*header, "time of NPO's"], body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--rounds", type=int, default=5, help="of time")
    parser.add_argument("--steps", type=int, default=4, help="in each training that is timed")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    disable_progress_bars()
    variants = list(dict.fromkeys(["npo", *args.variant]))
    rows, mask = {}, None
    for variant in variants:
        rows[variant], mask = counted(variant, mask, SHAPES[args.shape].model)
        print(json.dumps({"variant": variant, **rows[variant]}), flush=True)
    for variant, times in step_ratios(variants, args.rounds, args.steps).items():
        rows[variant] |= times
    setting = {"shape": args.shape, "density": DENSITY, "rows": ROWS, "length": LENGTH, "optim": "adamw_8bit"}
    timed = {"shape": SMALL, "length": SMALL_LENGTH, "rounds": args.rounds, "steps": args.steps}
    write_result(args.output, {"memory": setting, "time": timed, "rows": with_npo(rows)})
    print(table(rows))


if __name__ == "__main__":
    main()
