"""`wagle plan`: predicts whether a run fits, from the model's config alone. It also takes the options of `wagle unlearn`."""

import re
import shlex
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from ..attribution.config import MaskConfig
from ..files.atomic import atomic_path
from ..files.figure import write_figure
from ..files.model_class import class_of
from ..masks.mask import WeightMask
from ..memory.bars import Peak, draw_peaks
from ..memory.simulation import losses_on_gpu
from ..objectives.names import OBJECTIVES
from ..optim.masked_adamw import STATE_BITS
from ..planning.advice import suggest
from ..planning.planner import Plan, Planner, Setup, plan_table
from ..trainers.masked_sft import MaskedSFTConfig
from ..unlearning.config import UnlearningConfig
from ..unlearning.planned_step import planned_losses, planned_reference
from .arguments import FineTuningData, MaskSource, WagleModelConfig, load_config
from .objectives import chosen_objective, options_elsewhere
from .output import Output
from .parser import given_options, parse
from .train import TRAINERS, option_types

_UNITS = {"GB": 1e9, "G": 1e9, "GIB": 2**30, "": 1e9}


@dataclass
class PlanArguments:
    """
    Options of the plan.

    Args:
        gpu (`str`, *optional*): Memory of the GPU.
        objective (`str`): Objective to plan, or `sft`.
        auto (`str`, *optional*): File to write the fitting options to.
        plot (`str`, *optional*): File to draw the plan to.
    """

    gpu: str | None = field(
        default=None,
        metadata={
            "help": "Memory of the GPU, such as '24GB' (of 10^9 bytes) or '80GiB'; by default that of the local GPU."
        },
    )
    objective: str = field(default="npo", metadata={"help": f"What to plan: {', '.join(TRAINERS)}."})
    auto: str | None = field(
        default=None,
        metadata={
            "help": "Write the options, with the cheapest change that makes them fit, to this YAML file (by default "
            "wagle_plan.yaml).",
            "nargs": "?",
            "const": "wagle_plan.yaml",
        },
    )
    plot: str | None = field(
        default=None,
        metadata={"help": "Draw the plan to this PNG file, and to a PDF file of the same name."},
    )


def run(argv: list[str], command: str) -> Output:
    method = chosen_objective(argv, others=["sft"]) or PlanArguments.objective
    types = [PlanArguments, FineTuningData, *option_types(method)[1:]]  # the files of all trainers
    args, *parsed = parse(types, argv, command, options_elsewhere())
    _, mask_source, mask_config, training_args, model_args = parsed
    given = given_options(argv, parsed)
    capacity = _capacity(args.gpu)
    config = _load_config(model_args, training_args)
    build = partial(_build, config, model_args, training_args.trust_remote_code)
    training_losses = None
    if isinstance(training_args, UnlearningConfig):
        training_losses = planned_losses(OBJECTIVES[method], training_args)
    # The plan may be for another machine
    planner = Planner(build, losses_on_gpu, on_gpu=True, host=0, training_losses=training_losses)
    dtype = model_args.dtype_for(config, masked=mask_source.mask != "none")
    if dtype == "auto":
        dtype = str(config.dtype or torch.float32).removeprefix("torch.")
    setup = _setup(method, mask_source, mask_config, training_args, dtype, given)
    try:
        plan, changes = planner.plan(setup, capacity), suggest(planner, setup, capacity)
        saved = _saved_by_bf16(planner, setup, capacity)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"This model cannot be planned without its data: {error}") from error
    content = plan.to_dict() | {
        "model": model_args.model_name_or_path,
        "changes": changes,
        "bfloat16_saves_bytes": saved,
    }
    lines: list[Any] = [plan_table(plan)]
    if saved:
        lines.append(
            f"--dtype bfloat16 takes {saved / 1e9:.3g} GB less; it rounds the weights that no mask selects, too, so that they "
            "are no longer those of the base."
        )
    if changes:
        lines.append(f"Cheapest change that makes it fit: {' '.join(f'--{n} {v}' for n, v in changes.items())}")
    elif changes is None:
        lines.append("No option makes this model fit: use a larger GPU or a smaller model.")
    if args.auto is not None and changes is not None:
        with atomic_path(args.auto) as path:
            given.pop("activation_checkpointing", None)  # it would win over its old name below
            options = given | {"gradient_checkpointing": setup.gradient_checkpointing} | changes
            options |= {} if method == "sft" else {"objective": method}
            path.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
        lines.append(f"Written: wagle {'sft' if method == 'sft' else 'unlearn'} --config {shlex.quote(args.auto)}")
    if args.plot is not None:
        content["plot"] = [str(file) for file in _draw(plan, Path(args.plot))]
        lines.append(f"Drawn: {' '.join(content['plot'])}")
    fits = changes == {} or (args.auto is not None and changes is not None)
    return Output(content, lines, exit_code=0 if fits else 1)


def _draw(plan: Plan, path: Path) -> list[Path]:
    """Draw the peaks of a plan to a PNG, and to a PDF beside it. `path` is either, or the name of both without a suffix."""
    components = {"attribution": plan.attribution, "training": plan.training}
    peaks = [Peak(phase, predicted) for phase, predicted in components.items() if predicted is not None]
    stem = path.name.removesuffix(".png").removesuffix(".pdf")
    return write_figure(draw_peaks(peaks, plan.capacity), path.with_name(f"{stem}.png"), dpi=200)


def _capacity(gpu: str | None) -> int:
    """Count the bytes that `--gpu` names, or those of the local GPU."""
    if gpu is None:
        if not torch.cuda.is_available():
            raise ValueError("There is no local GPU; name a size, for example --gpu 24GB.")
        return torch.cuda.get_device_properties(0).total_memory
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", gpu)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise ValueError(f"--gpu must be a size such as '24GB' or '80GiB', got '{gpu}'.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _load_config(model_args: WagleModelConfig, training_args: MaskedSFTConfig) -> PreTrainedConfig:
    if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
        raise ValueError(
            "wagle plan predicts runs with full weights; leave out use_peft, load_in_4bit and load_in_8bit."
        )
    return load_config(model_args, training_args.trust_remote_code)


def _build(config: PreTrainedConfig, model_args: WagleModelConfig, trust_remote_code: bool, dtype: str) -> nn.Module:
    """Build the model in `dtype`."""
    attention = model_args.attn_implementation
    if (
        attention is not None and "flash" in attention
    ):  # flash attention needs a GPU, and as much memory as torch's own
        attention = "sdpa"
    with no_init_weights():  # some would look at values
        return class_of(config).from_config(
            config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
        )


def _saved_by_bf16(planner: Planner, setup: Setup, capacity: int) -> int:
    """Compute the bytes that weights in bf16 would save at the peak of a masked run in fp32."""
    if setup.dtype != "float32" or (setup.mask is None and setup.mask_config is None):
        return 0
    plans = (planner.plan(replace(setup, dtype=dtype), capacity) for dtype in ("float32", "bfloat16"))
    peaks = [max(plan.training_peak_bytes, plan.attribution_peak_bytes or 0) for plan in plans]
    return peaks[0] - peaks[1]


def _setup(
    method: str,
    mask_source: MaskSource,
    mask_config: MaskConfig,
    training_args: MaskedSFTConfig,
    dtype: str,
    given: dict[str, Any],
) -> Setup:
    if training_args.max_length is None:
        raise ValueError("The plan needs the length of the rows; give --max_length.")
    if training_args.optim not in STATE_BITS:
        name = training_args.optim.value  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"--optim must be one of {', '.join(STATE_BITS)}, got '{name}'.")
    rows_per_sample, reference = 1, None
    if isinstance(training_args, UnlearningConfig):
        objective = OBJECTIVES[method]
        rows_per_sample = len(objective.rows_of(training_args))
        # "auto" depends on the rows: counted is what takes more
        reference = planned_reference(objective, training_args, swaps=training_args.reference_states != "stored")
    has_path = mask_source.mask not in ("auto", "none")
    return Setup(
        mask_config=mask_config if mask_source.mask == "auto" else None,
        mask=WeightMask.load(mask_source.mask) if has_path else None,
        dtype=dtype,
        optim=training_args.optim,
        per_device_train_batch_size=training_args.per_device_train_batch_size,
        gradient_accumulation_steps=training_args.gradient_accumulation_steps,
        gradient_checkpointing=training_args.gradient_checkpointing,
        max_length=training_args.max_length,
        bf16=given.get("bf16", True),  # as on a GPU, where TRL has it on
        accumulator_dtype=training_args.accumulator_dtype,
        rows_per_sample=rows_per_sample,
        reference=reference,
    )
