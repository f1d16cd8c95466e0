"""
The short help of every command: what it does, an example, and the options that most runs need, in groups.

It is kept beside the options, not made from them: the configurations of trainers take seconds to import. A test compares
names and defaults with the parsers. `--help-all` lists every option of a command, from its parser.
"""

import textwrap
from dataclasses import dataclass, field

_WIDTH = 116

Group = dict[str, str]  # option or argument -> what it is for

_DATA: Group = {
    "--model_name_or_path": "Model to start from: a Hub name or a folder.",
    "--forget_dataset": "Rows to forget: a Hub name, a folder, or a JSON, JSON lines, CSV, Parquet, Arrow or text file "
    "with prompt/completion, question/answer, messages, text, or input_ids/labels.",
    "--retain_dataset": "Rows to keep, in the same forms.",
    "--unseen_dataset": "Rows to keep that are measured but not trained on, in the same forms.",
    "--tofu_split": "Instead of rows of your own: forget01, forget05 or forget10 of TOFU, and its retain rows.",
    "--tofu_dir": "Folder with TOFU's full.jsonl, instead of the Hub.",
    "--max_length": "Longest row in tokens.",
    "--long_rows": "What to do with longer rows: truncate, split or refuse.",
}
_MASK: Group = {
    "--mask": "auto computes a mask, none trains all weights, anything else is the path of a saved mask (default: auto).",
    "--mask_score": "wagle, gradient, snip, product, magnitude, random, ratio or fisher_ratio (default: wagle).",
    "--mask_density": "Share of the weights in scope to select (default: 0.05).",
    "--mask_scope": "Patterns of parameter names to choose from; by default all but embeddings and LM head.",
    "--mask_exclude": "Patterns of parameter names to leave out.",
}
_UNLEARNING: Group = {
    "--retain_weight": "Weight of the loss on the retain rows.",
    "--retain_loss": "Loss on the retain rows.",
    "--trajectory_steps": "Steps between two measurements of the answer probabilities; 0 measures nothing.",
    "--stop_forget_probability": "End at this forget probability, once retain is back; 0: never (default: 0.1).",
    "--stop_retain_probability": "Share of the first retain probability that must be back (default: 0.95).",
    "--stop_patience": "Measurements without movement that end the run (default: 10).",
    "--metric_for_best_model": "kept, with --load_best_model_at_end: the best of those that forgot.",
}
_TRAINING: Group = {
    "--output_dir": "Folder for the model, the mask and the report.",
    "--learning_rate": "Initial learning rate.",
    "--num_train_epochs": "Passes over the rows.",
    "--max_steps": "Steps to train, instead of epochs.",
    "--per_device_train_batch_size": "Rows per batch.",
    "--gradient_accumulation_steps": "Batches per step.",
    "--warmup_steps": "Steps over which the learning rate rises.",
    "--seed": "Seed of the order of the rows and of dropout.",
    "--logging_steps": "Steps between two lines of the log.",
    "--eval_strategy": "no, steps or epoch: when to evaluate on all sets.",
    "--save_strategy": "no, steps or epoch: when to save checkpoints, from which an interrupted run goes on.",
    "--resume_from_checkpoint": "true for the last whole checkpoint in output_dir, or the folder of one.",
    "--report_to": "Tracker: tensorboard, trackio, wandb or none.",
}
_MEMORY: Group = {
    "--dtype": "Dtype to load the weights in: auto, bfloat16, float16 or float32.",
    "--optim": "adamw_8bit holds the moments of selected weights in 8 bits.",
    "--gradient_checkpointing": "Compute activations again in the backward pass (default: True).",
    "--attribution_memory": "Where attribution keeps its statistics: auto, resident, offload, host or sweeps "
    "(default: auto).",
    "--accumulator_dtype": "bfloat16 halves the memory of the gradients (default: float32).",
    "--use_peft": "Train adapters; --lora_r, --lora_alpha and --lora_target_modules say which.",
}
_PUBLISHING: Group = {
    "--save_delta": "Also save what changed, as wagle_delta.safetensors.",
    "--hash_forget_set": "Name no data set in card and report.",
    "--push_to_hub": "Publish the model at the end; see also wagle push.",
    "--hub_model_id": "Repository, such as user/name.",
    "--hub_private_repo": "Whether a new repository is private.",
}
_EVERYWHERE: Group = {
    "--config FILE": "YAML file with options; the command line wins.",
    "--json": "Print one JSON object on stdout.",
    "--debug": "Show the traceback of an error.",
    "--help-all": "List every option with its default.",
}

_BASE_REVISION = {"--base_revision": "Branch, tag or commit of BASE on the Hub."}
_NEW_FOLDER = {"--output_dir": "Folder to create; nothing is overwritten."}
_DELTA = {
    "DELTA": "Folder, file or Hub name of a delta.",
    "BASE": "Folder or Hub name of its base; by default the one that the delta names.",
}
_DELTA_SOURCE = _NEW_FOLDER | _BASE_REVISION | {"--revision": "Branch, tag or commit of DELTA on the Hub."}
_MODELS = {
    "BASE": "The model before: a folder with safetensors, or a Hub name.",
    "UNLEARNED": "The model after.",
    "MASK": "Folder, file or Hub name of the mask; by default that in UNLEARNED.",
}
_CARD = {
    "--what": "model, mask or delta (default: model).",
    "--base_model_name_or_path": "The base on the Hub, if the run loaded it from a folder.",
    "--before": "Output folder of wagle eval of the base, to compare with.",
    "--license": "Identifier of the licence; by default that of the base.",
    "--hash_forget_set": "Name no data set in the card.",
}
_ROWS = "--forget_dataset forget.jsonl --retain_dataset retain.jsonl"


@dataclass(frozen=True)
class Help:
    """
    Short help of a command.

    Args:
        example (`str`): A command line, without `wagle` and the command.
        groups (`dict[str, dict[str, str]]`): What options and arguments are for, by the title of their group.
        arguments (`str`, *optional*): Arguments before the options, as in the usage line.
        is_complete (`bool`, *optional*, defaults to `True`): Whether these are all options of the command.
    """

    example: str
    groups: dict[str, Group] = field(default_factory=dict)
    arguments: str = ""
    is_complete: bool = True


def _training(objective: Group, example: str, data: Group = _DATA) -> Help:
    groups = {"data": data, "mask": _MASK, "objective": objective, "training": _TRAINING}
    groups |= {"memory": _MEMORY, "publishing": _PUBLISHING}
    return Help(f"--model_name_or_path MODEL {example} --output_dir out", groups, is_complete=False)


HELP = {
    "demo": Help(
        "--output_dir demo-output",
        {
            "options": {
                "--output_dir": "Folder for the results (default: demo-output).",
                "--seed": "Seed (default: 0).",
            }
        },
    ),
    "plan": Help(
        "--config examples/npo_tofu.yaml --gpu 24GB",
        {
            "plan": {
                "--gpu": "Memory of the GPU, such as 24GB or 80GiB; by default that of the local GPU.",
                "--objective": "Command to plan (default: npo).",
                "--auto": "Write options that fit to this YAML file.",
            },
            "run": {name: _DATA[name] for name in ("--model_name_or_path", "--max_length")}
            | {name: _TRAINING[name] for name in ("--per_device_train_batch_size", "--gradient_accumulation_steps")}
            | {name: _MASK[name] for name in ("--mask", "--mask_density", "--mask_scope")},
            "memory": {name: text for name, text in _MEMORY.items() if name != "--use_peft"},
        },
        is_complete=False,
    ),
    "mask": Help(
        f"--model_name_or_path MODEL {_ROWS} --output_dir mask",
        {
            "data": {name: text for name, text in _DATA.items() if name != "--unseen_dataset"},
            "mask": {name: text for name, text in _MASK.items() if name != "--mask"}
            | {"--output_dir": "Folder for the mask, its picture and the report."}
            | {"--plot_pdf": "Write the picture as PDF, too (default: False)."},
            "memory": {name: _MEMORY[name] for name in ("--dtype", "--attribution_memory")},
        },
        is_complete=False,
    ),
    "npo": _training(_UNLEARNING | {"--beta": "Inverse temperature; smaller goes further (default: 0.1)."}, _ROWS),
    "graddiff": _training(_UNLEARNING, _ROWS),
    "tune": Help(
        f"npo --model_name_or_path MODEL {_ROWS} --output_dir tune",
        {
            "arguments": {"OBJECTIVE": "npo or graddiff."},
            "tuning": {
                "--output_dir": "Folder for runs, masks and best.yaml. The same command again goes on.",
                "--tune_learning_rate": "Rates to try; by default 1/4, 1/2, 1, 2 and 4 times --learning_rate.",
                "--tune_retain_weight": "Weights to try; by default 1, 5 and 20.",
                "--tune_mask_score": "Scores to try, beside --mask_score.",
                "--tune_mask_density": "Densities to try, beside --mask_density.",
                "--tune_steps": "Steps of the shortest runs; by default a quarter of a run.",
                "--trajectory_rows": "Rows of each set that are measured, at most (default: 64).",
            },
            "data": _DATA,
            "mask": _MASK,
            "objective": _UNLEARNING,
            "training": {name: _TRAINING[name] for name in ("--learning_rate", "--num_train_epochs", "--max_steps")},
            "memory": _MEMORY,
        },
        "OBJECTIVE",
        is_complete=False,
    ),
    "sft": _training(
        {},
        "--dataset_name rows.jsonl",
        {
            "--model_name_or_path": _DATA["--model_name_or_path"],
            "--dataset_name": "Rows to train on; by default the retain rows.",
        }
        | _DATA
        | {
            "--forget_dataset": "Rows whose weights are trained, in the forms of wagle npo.",
            "--retain_dataset": "Rows whose weights are spared.",
        },
    ),
    "eval": Help(
        f"--model_name_or_path out {_ROWS} --output_dir out",
        {
            "model": {
                "--model_name_or_path": "Model or adapters to evaluate: a Hub name or a folder.",
                "--base_model_name_or_path": "The model before unlearning, to compare with.",
                "--dtype": "auto, bfloat16, float16 or float32 (default: auto).",
            },
            "data": {
                "--forget_dataset": "Rows that were forgotten, in the forms of wagle npo.",
                "--retain_dataset": "Rows that were kept.",
                "--unseen_dataset": "Rows to keep that took no part in unlearning.",
                "--holdout_dataset": "Rows like the forget rows that no model was trained on, for membership inference.",
                "--tofu_split": "Instead: forget01, forget05 or forget10 of TOFU, with all its sets.",
                "--tofu_dir": "Folder with the TOFU files, instead of the Hub.",
            },
            "evaluation": {
                "--output_dir": "Folder for records and summary (default: wagle-eval).",
                "--reference_records": "wagle_records.jsonl of a model trained on the retain rows alone.",
                "--attack": "relearn, quantize or paraphrase, or several.",
                "--batch_size": "Rows per batch.",
                "--exposure_candidates": "Random secrets to rank that of a forget row among (default: 256).",
            },
        },
        is_complete=False,
    ),
    "report": Help(
        "run-1 run-2 --output_dir comparison",
        {
            "arguments": {"RUN": "Output folders of wagle npo, graddiff, sft, mask or eval."},
            "options": {"--output_dir": "Folder for report.md, figures and CSV files (default: wagle-report)."},
        },
        "RUN [RUN ...]",
    ),
    "verify": Help(
        "demo-output/base demo-output",
        {
            "arguments": _MODELS | {"MASK": f"{_MODELS['MASK']} Without a mask, nothing may differ."},
            "options": _BASE_REVISION | {"--revision": "Branch, tag or commit of UNLEARNED on the Hub."},
        },
        "BASE UNLEARNED [MASK]",
    ),
    "delta": Help(
        "BASE out",
        {
            "arguments": _MODELS,
            "options": {"--output_dir": "Folder for wagle_delta.safetensors; by default UNLEARNED."}
            | _BASE_REVISION
            | {"--undo": "Also save the old values, for wagle undo. Do not publish them."},
        },
        "BASE UNLEARNED [MASK]",
    ),
    "apply": Help(
        "user/delta --output_dir unlearned", {"arguments": _DELTA, "options": _DELTA_SOURCE}, "DELTA [BASE]"
    ),
    "undo": Help(
        "kept/wagle_delta.safetensors unlearned --output_dir base",
        {
            "arguments": {
                "DELTA": "Delta with the old values, of wagle delta --undo.",
                "UNLEARNED": "The model that it made.",
            },
            "options": _NEW_FOLDER | {"--revision": "Branch, tag or commit of UNLEARNED on the Hub."},
        },
        "DELTA UNLEARNED",
    ),
    "merge": Help(
        "delta-1 delta-2 --output_dir merged",
        {
            "arguments": {"DELTA": "Folders, files or Hub names of deltas of one base."},
            "options": _NEW_FOLDER
            | {
                "--weights": "One number per delta: weights that several change get the mean. Otherwise the last wins."
            },
        },
        "DELTA [DELTA ...]",
    ),
    "adapter": Help(
        "user/delta --output_dir adapter", {"arguments": _DELTA, "options": _DELTA_SOURCE}, "DELTA [BASE]"
    ),
    "card": Help(
        "out",
        {
            "arguments": {"FOLDER": "Output folder of a run."},
            "options": _CARD | {"--overwrite": "Replace a card that was edited."},
        },
        "FOLDER",
    ),
    "push": Help(
        "out --hub_model_id user/name --what delta",
        {
            "arguments": {"FOLDER": "Output folder of a run."},
            "repository": {
                "--hub_model_id": "Repository, such as user/name; by default the name of FOLDER.",
                "--hub_token": "Token; by default that of hf auth login.",
                "--hub_private_repo": "Whether a new repository is private.",
                "--hub_revision": "Branch to push to.",
                "--commit_message": "Message of the commit.",
            },
            "card": {"--card": "File with your own card."} | _CARD,
        },
        "FOLDER",
    ),
    "env": Help(""),
}


def short_help(command: str, description: str) -> str:
    """Format the short help of a command."""
    about = HELP[command]
    usage = " ".join(part for part in (f"wagle {command}", about.arguments, "[OPTIONS]") if part)
    lines = [f"usage: {usage}", "", f"{description}.", "", "example:", f"  wagle {command} {about.example}".rstrip()]
    groups = about.groups | {"of every command": _EVERYWHERE}
    width = 2 + max(len(name) for group in groups.values() for name in group)
    for title, group in groups.items():
        lines += ["", f"{title}:"] if group else []
        for name, text in group.items():
            indent = " " * (width + 2)
            lines.append(textwrap.fill(text, _WIDTH, initial_indent=f"  {name:{width}}", subsequent_indent=indent))
    if not about.is_complete:
        lines += [
            "",
            f"These are the most common options. wagle {command} --help-all lists them all, as YAML takes them.",
        ]
    return "\n".join(lines)
