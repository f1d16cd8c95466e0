"""
The short help of every command: what it does, an example, and the options that most runs need, in groups.

It is kept beside the options, not made from them: the configurations of trainers take seconds to import. A test compares
names and defaults with the parsers. `--help-all` lists every option of a command, from its parser.
"""

import textwrap
from dataclasses import dataclass, field

from .option_texts import (
    BASE_REVISION,
    CARD,
    DATA,
    DELTA,
    DELTA_SOURCE,
    EVERYWHERE,
    MASK,
    MEMORY,
    MODELS,
    NEW_FOLDER,
    OBJECTIVES,
    PUBLISHING,
    ROWS,
    TRAINING,
    UNLEARNING,
    UNLEARNING_LENGTH,
    Group,
)

_WIDTH = 116


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


def _training(objective: Group, example: str, data: Group = DATA, training: Group = TRAINING) -> Help:
    groups = {"data": data, "mask": MASK, "objective": objective, "training": training}
    groups |= {"memory": MEMORY, "publishing": PUBLISHING}
    return Help(f"--model_name_or_path MODEL {example} --output_dir out", groups, is_complete=False)


def unlearning_help(own: Group) -> Help:
    """Make the short help of an objective from the texts of its own options."""
    return _training(UNLEARNING | own, ROWS, training=TRAINING | UNLEARNING_LENGTH)


_OPTIONAL = ("--unseen_dataset", "--tofu_dir", "--max_length", "--long_rows")  # of rows


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
                "--objective": "Objective to plan, as in wagle unlearn, or sft (default: npo).",
                "--auto": "Write options that fit to this YAML file.",
                "--plot": "Draw the plan to this PNG file, and to a PDF file beside it.",
            },
            "run": {name: DATA[name] for name in ("--model_name_or_path", "--max_length")}
            | {name: TRAINING[name] for name in ("--per_device_train_batch_size", "--gradient_accumulation_steps")}
            | {name: MASK[name] for name in ("--mask", "--mask_density", "--mask_scope")},
            "memory": {name: text for name, text in MEMORY.items() if name != "--use_peft"},
        },
        is_complete=False,
    ),
    "mask": Help(
        f"--model_name_or_path MODEL {ROWS} --output_dir mask",
        {
            "data": {name: text for name, text in DATA.items() if name != "--unseen_dataset"},
            "mask": {name: text for name, text in MASK.items() if name != "--mask"}
            | {"--output_dir": "Folder for the mask, its picture and the report."}
            | {"--plot_pdf": "Write the picture as PDF, too (default: False)."},
            "memory": {name: MEMORY[name] for name in ("--dtype", "--attribution_memory")},
        },
        is_complete=False,
    ),
    "unlearn": Help(
        f"--objective simnpo --model_name_or_path MODEL {ROWS}",
        {
            "objectives; wagle unlearn --objective NAME --help shows the options of one": OBJECTIVES,
            "data": {name: text for name, text in DATA.items() if name not in _OPTIONAL},
            "mask": {name: MASK[name] for name in ("--mask", "--mask_score", "--mask_density")},
            "objective": {"--objective": "One of the above."} | UNLEARNING,
            "training": {
                name: (TRAINING | UNLEARNING_LENGTH)[name]
                for name in ("--output_dir", "--learning_rate", "--num_train_epochs", "--max_steps")
            },
            "memory": {name: MEMORY[name] for name in ("--dtype", "--optim", "--use_peft")},
        },
        is_complete=False,
    ),
    "npo": unlearning_help({"--beta": "Inverse temperature; smaller goes further (default: 0.1)."}),
    "graddiff": unlearning_help({"--retain_weight": "Weight of the loss on the retain rows (default: 10.0)."}),
    "alternates": Help(
        "--model_name_or_path MODEL --forget_dataset forget.jsonl --output_dir alternates",
        {
            "model": {
                "--model_name_or_path": "The model before unlearning: a Hub name or a folder.",
                "--dtype": "auto, bfloat16, float16 or float32 (default: auto).",
            },
            "data": {
                "--forget_dataset": "Rows with a prompt, in the forms of wagle unlearn.",
                "--output_dir": "Folder for forget.jsonl: the rows with a column alternate. The same command again goes on.",
            },
            "sampling": {
                "--num_alternates": "Alternates per row (default: 5).",
                "--temperature": "Temperature of sampling (default: 1.0).",
                "--max_new_tokens": "Longest alternate, in tokens (default: 200).",
                "--seed": "Seed of sampling (default: 0).",
                "--batch_size": "Texts per generation (default: 16).",
            },
        },
        is_complete=False,
    ),
    "tune": Help(
        f"npo --model_name_or_path MODEL {ROWS} --output_dir tune",
        {
            "arguments": {"OBJECTIVE": "One of those of wagle unlearn, such as npo."},
            "tuning": {
                "--output_dir": "Folder for runs, masks and best.yaml. The same command again goes on.",
                "--tune_learning_rate": "Rates to try; by default 1/4, 1/2, 1, 2 and 4 times --learning_rate.",
                "--tune_retain_weight": "Weights to try; by default 1, 5 and 20.",
                "--tune_mask_score": "Scores to try, beside --mask_score.",
                "--tune_mask_density": "Densities to try, beside --mask_density.",
                "--tune_steps": "Steps of the shortest runs; by default a quarter of a run.",
                "--trajectory_rows": "Rows of each set that are measured, at most (default: 64).",
            },
            "data": DATA,
            "mask": MASK,
            "objective": UNLEARNING,
            "training": {name: TRAINING[name] for name in ("--learning_rate", "--num_train_epochs", "--max_steps")},
            "memory": MEMORY,
        },
        "OBJECTIVE",
        is_complete=False,
    ),
    "sft": _training(
        {},
        "--dataset_name rows.jsonl",
        {
            "--model_name_or_path": DATA["--model_name_or_path"],
            "--dataset_name": "Rows to train on; by default the retain rows.",
        }
        | DATA
        | {
            "--forget_dataset": "Rows whose weights are trained, in the forms of wagle unlearn.",
            "--retain_dataset": "Rows whose weights are spared.",
        },
    ),
    "eval": Help(
        f"--model_name_or_path out {ROWS} --output_dir out",
        {
            "model": {
                "--model_name_or_path": "Model or adapters to evaluate: a Hub name or a folder.",
                "--base_model_name_or_path": "The model before unlearning, to compare with.",
                "--dtype": "auto, bfloat16, float16 or float32 (default: auto).",
            },
            "data": {
                "--forget_dataset": "Rows that were forgotten, in the forms of wagle unlearn.",
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
            "arguments": {"RUN": "Output folders of wagle unlearn, sft, mask or eval."},
            "options": {"--output_dir": "Folder for report.md, figures and CSV files (default: wagle-report)."},
        },
        "RUN [RUN ...]",
    ),
    "verify": Help(
        "BASE out",
        {
            "arguments": MODELS | {"MASK": f"{MODELS['MASK']} Without a mask, nothing may differ."},
            "options": BASE_REVISION | {"--revision": "Branch, tag or commit of UNLEARNED on the Hub."},
        },
        "BASE UNLEARNED [MASK]",
    ),
    "delta": Help(
        "BASE out",
        {
            "arguments": MODELS,
            "options": {"--output_dir": "Folder for wagle_delta.safetensors; by default UNLEARNED."}
            | BASE_REVISION
            | {"--undo": "Also save the old values, for wagle undo. Do not publish them."},
        },
        "BASE UNLEARNED [MASK]",
    ),
    "apply": Help("user/delta --output_dir unlearned", {"arguments": DELTA, "options": DELTA_SOURCE}, "DELTA [BASE]"),
    "undo": Help(
        "kept/wagle_delta.safetensors unlearned --output_dir base",
        {
            "arguments": {
                "DELTA": "Delta with the old values, of wagle delta --undo.",
                "UNLEARNED": "The model that it made.",
            },
            "options": NEW_FOLDER | {"--revision": "Branch, tag or commit of UNLEARNED on the Hub."},
        },
        "DELTA UNLEARNED",
    ),
    "merge": Help(
        "delta-1 delta-2 --output_dir merged",
        {
            "arguments": {"DELTA": "Folders, files or Hub names of deltas of one base."},
            "options": NEW_FOLDER
            | {
                "--weights": "One number per delta: weights that several change get the mean. Otherwise the last wins."
            },
        },
        "DELTA [DELTA ...]",
    ),
    "adapter": Help("user/delta --output_dir adapter", {"arguments": DELTA, "options": DELTA_SOURCE}, "DELTA [BASE]"),
    "card": Help(
        "out",
        {
            "arguments": {"FOLDER": "Output folder of a run."},
            "options": CARD | {"--overwrite": "Replace a card that was edited."},
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
            "card": {"--card": "File with your own card."} | CARD,
        },
        "FOLDER",
    ),
    "env": Help(""),
}


def short_help(command: str, description: str, about: Help) -> str:
    """
    Format the short help of a command.

    Args:
        command (`str`): The command, and what else decides which options there are.
        description (`str`): What it does, without a full stop.
        about ([`Help`]): Its example and options.
    """
    usage = " ".join(part for part in (f"wagle {command}", about.arguments, "[OPTIONS]") if part)
    lines = [f"usage: {usage}", "", f"{description}.", "", "example:", f"  wagle {command} {about.example}".rstrip()]
    groups = about.groups | {"of every command": EVERYWHERE}
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
