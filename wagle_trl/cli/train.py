"""`wagle unlearn`, its short forms `npo` and `graddiff`, and `wagle sft`: train with a mask or without one."""

from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import logging
from trl import get_peft_config, get_quantization_config

from ..attribution.config import MaskConfig
from ..attribution.report import report_tables
from ..comparison.goal import Goal
from ..data.pairing import check_disjoint
from ..objectives.names import OBJECTIVES
from ..trainers.masked_sft import MaskedSFTConfig, MaskedSFTTrainer
from ..unlearning.config import UnlearningConfig
from .arguments import (
    UNSEEN,
    FineTuningData,
    MaskSource,
    UnlearningData,
    WagleModelConfig,
    load_tokenizer,
    model_init_kwargs,
    require_model,
)
from .going_on import advising, resume_advice
from .objectives import ObjectiveChoice, chosen_objective, options_elsewhere
from .output import Output, key_value_table
from .parser import parse

logger = logging.get_logger(__name__)

TRAINERS: dict[str, type[MaskedSFTTrainer]] = {**OBJECTIVES, "sft": MaskedSFTTrainer}
# Name in `report_to` and of the extra -> modules of which transformers needs one
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}


def run(argv: list[str], command: str) -> Output:
    named = command if command in OBJECTIVES else None
    method = "sft" if command == "sft" else chosen_objective(argv, named)
    data_args, mask_source, mask_config, training_args, model_args = parse_options(argv, command, method)
    if method is None:
        raise ValueError(f"No objective: give --objective {', '.join(OBJECTIVES)} (see `wagle {command} --help`).")
    _require_trackers(training_args.report_to)
    checkpoint = _checkpoint(training_args.resume_from_checkpoint)
    mask = mask_source.trainer_arguments(mask_config, model_args.use_peft)
    unused = [option.name for option in fields(mask_config) if getattr(mask_config, option.name) != option.default]
    if "mask_config" not in mask and unused:
        logger.warning(f"No mask is computed, so these options do nothing: {', '.join(unused)}.")
    trainer = build_trainer(TRAINERS[method], data_args, training_args, model_args, **mask)
    with advising(lambda error: resume_advice(error, trainer, command, argv)):
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.create_model_card()
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return _summary(trainer)


def parse_options(argv: list[str], command: str, method: str | None) -> tuple[Any, ...]:
    """
    Parse the options of a training command. Unlearning stops when it is done, unless nothing is to be measured.

    Args:
        argv (`list[str]`): Arguments after the command.
        command (`str`): The command, as it is shown.
        method (`str`, *optional*): Objective, or `"sft"`; without one, only the options of every objective are known.
    """
    if method == "sft":
        return parse(option_types(method), argv, command)
    level, types = Goal.forget_probability, [*option_types(method), ObjectiveChoice]
    *options, _ = parse(types, argv, command, options_elsewhere(), stop_forget_probability=level)
    args = next(option for option in options if isinstance(option, UnlearningConfig))
    if args.trajectory_steps == 0 and args.stop_forget_probability == level:
        args.stop_forget_probability = None
    return (*options,)


def option_types(method: str | None) -> list[type]:
    """List the dataclasses of the options of an objective or of `"sft"`; without either, those of every objective."""
    data = FineTuningData if method == "sft" else UnlearningData
    config = UnlearningConfig if method is None else TRAINERS[method].config_class
    return [data, MaskSource, MaskConfig, config, WagleModelConfig]


def build_trainer(
    trainer_class: Callable[..., MaskedSFTTrainer],
    data_args: UnlearningData,
    training_args: MaskedSFTConfig,
    model_args: WagleModelConfig,
    **mask: Any,
) -> MaskedSFTTrainer:
    """Build a trainer with the data, model and mask that the options name."""
    model = require_model(model_args)
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args, masked=bool(mask))
    tokenizer = load_tokenizer(model_args, training_args.trust_remote_code)
    datasets = data_args.load(training_args.dataset_text_field)
    evaluated = data_args.load_unseen(training_args.dataset_text_field)
    if training_args.eval_strategy != "no":
        evaluated = {data_args.eval_names[name]: rows for name, rows in datasets.items()} | evaluated
    trainer = trainer_class(
        model,
        training_args,
        **datasets,
        eval_dataset=evaluated or None,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        **mask,
    )
    if UNSEEN in evaluated:  # its numbers would be of rows that took part
        unseen: Any = trainer.eval_dataset
        for name, rows in {trainer.train_set: trainer.train_dataset, "retain": trainer.retain_dataset}.items():
            if rows is not None:
                check_disjoint(rows, unseen[UNSEEN], (name, "unseen"))
    return trainer


def _require_trackers(names: list[str]) -> None:
    """Refuse a missing tracker before the model is loaded; transformers would refuse it after."""
    not_looked_up = {*TRACKERS, "azure_ml", "flyte"}  # transformers does not always look for the last two
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(("none", "all", *INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to: there is no tracker '{name}'; expected one of {known}.")
        if name in TRACKERS and not any(map(find_spec, TRACKERS[name])):
            raise ImportError(f"report_to: {name} is not installed; `pip install 'wagle-trl[{name}]'` brings it.")
        if name not in (*not_looked_up, *get_available_reporting_integrations()):
            raise ImportError(f"report_to: {name} is not installed, or not set up; install it, or choose another one.")


def _checkpoint(value: str | None) -> str | bool | None:
    """Interpret `--resume_from_checkpoint`: `True` for the last checkpoint, or an existing folder."""
    if not value or value.lower() == "false":
        return None
    if value.lower() == "true":
        return True
    if not Path(value).is_dir():
        raise ValueError(f"No checkpoint at '{value}': the folder does not exist.")
    return value


def _summary(trainer: MaskedSFTTrainer) -> Output:
    """Make a table of what was logged of the saved weights, and of the run as a whole."""
    loaded = trainer.loaded_step
    logs: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        if loaded is None or entry["step"] <= loaded or "loaded_step" in entry or "train_loss" in entry:
            logs |= entry
    content = {"output_dir": trainer.args.output_dir, **logs}
    tables: list[Any] = [key_value_table(f"{trainer._name}: {trainer.args.output_dir}", content)]
    report = trainer.mask_report
    if report is not None:
        content |= {"num_selected": report["num_selected"], "mask_density": report["density"]}
        tables = report_tables(report) + tables
    content["verdict"] = trainer.verdict
    if trainer.verdict:
        tables.append(f"{trainer.verdict}.")
    return Output(content, tables)
