"""Reports, evaluations, records, rows, configs and options changed anywhere, in any way."""

import contextlib
import copy
import io
import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from wagle_trl.attribution.config import MaskConfig
from wagle_trl.attribution.report import mask_report
from wagle_trl.cli import verify
from wagle_trl.cli.arguments import loading
from wagle_trl.cli.parser import WagleParser
from wagle_trl.cli.train import option_types
from wagle_trl.comparison.document import write_document
from wagle_trl.comparison.groups import group_runs
from wagle_trl.comparison.interval import plain_numbers
from wagle_trl.comparison.runs import load_runs
from wagle_trl.comparison.tables import attack_tables, evaluation_tables, kept_tables, setup_table
from wagle_trl.data.alternates import load_refusals
from wagle_trl.data.formats import to_trl
from wagle_trl.data.rows import load_rows
from wagle_trl.deltas.config_changes import config_changes
from wagle_trl.evaluation.resumable_records import PartialRecords
from wagle_trl.evaluation.retrained_model import read_retrained_records
from wagle_trl.evaluation.robustness import AttackConfig
from wagle_trl.evaluation.samples import prepare_rows
from wagle_trl.evaluation.suite import summarize_all
from wagle_trl.evaluation.tofu import EvalOptions
from wagle_trl.files.checkpoint import Checkpoint
from wagle_trl.files.run_folder import EVALUATION_FILE, REPORT_FILE
from wagle_trl.files.schemas import TunedRun
from wagle_trl.hub.card import model_card
from wagle_trl.hub.staging import stage_model
from wagle_trl.unlearning.tuned import described, merit

from ..comparison.conftest import EVALUATION, TRAINING
from ..evaluation.test_resumable_records import record
from ..support.fuzzing import (
    PARTS,
    as_json,
    changed_bytes,
    changed_json,
    check_lines,
    check_markdown,
    check_shown,
    fuzz,
    is_accepted,
)
from ..support.hostile import base_model, mask_of_five, model_folder

COMMIT = "0123456789abcdef" * 2 + "01234567"
REPORT = TRAINING | {
    "base_revision": COMMIT,
    "base_is_local": False,
    "peft_type": None,
    "fingerprint": "ab" * 8,
    "data": {
        "forget": {
            "source": "user/rows",
            "revision": COMMIT,
            "config": "c",
            "split": "train",
            "rows": 4,
            "sha256": "ab",
        },
        "retain": {"source": "rows.jsonl", "rows": 6},
    },
    "num_train_rows": 4,
    "options": {"learning_rate": 2e-5, "max_steps": -1, "num_train_epochs": 2.0, "retain_weight": 1.0, "seed": 0},
    "mask": mask_report(mask_of_five())
    | {"info": {"score": "wagle", "gamma": "1", "versions": "{}", "jaccard": "{}"}},
    "steps": 10,
    "versions": {"torch": "2.13.0"},
}
ROWS = [
    {"question": "Who?", "answer": "Ada.", "paraphrased_answer": "It is Ada.", "perturbed_answer": ["Bo.", "Cy."]},
    {"prompt": "Where?", "completion": " Here.", "alternate": "There."},
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]},
    {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "Ada."}]},
    {"text": "Ada."},
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
]
PERTURBED = {
    "avg_paraphrased_loss": 1.0,
    "average_perturb_loss": [2.0, 3.0],
    "rougeL_recall": 0.5,
    "kl_to_base": 0.1,
    "mia_k": 0.4,
}
RECORDS = [record(index, **PERTURBED, set=name) for name in ("forget", "holdout", "retain") for index in range(2)]
SETS = {"forget": [{"perturbed_answer": ["no"]}] * 2, "holdout": [{}] * 2, "retain": [{}] * 2}
OPTIONS = {
    "mask_score": "wagle",
    "mask_density": 0.1,
    "mask_scope": ["*mlp*"],
    "batch_size": 4,
    "generate": False,
    "attack": ["relearn", "quantize"],
    "model_init_kwargs": {"trust_remote_code": False},
}
YAML = b"""# options
mask_score: wagle
mask_density: 1.0e-1
attack: &attack
  - relearn
  - "quantize"
mia_k: 0.4
<<: &base {batch_size: 4}
generate: no
mask_scope: [ '*mlp*', "*attn*" ]
"""
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32", "num_hidden_layers": 1}
CONFIG |= {"hidden_size": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "eos_token_id": [1, 2]}
ADAPTER = {"base_model_name_or_path": "user/base", "revision": COMMIT, "peft_type": "LORA", "target_modules": ["up"]}


def drawn(random, share):
    """Whether to do what takes long."""
    return random.random() < share


def check_runs(folders, random):
    """What `wagle report` does, and now and then what `wagle card` does."""
    runs = group_runs(load_runs(folders))
    tables = [setup_table(runs), *kept_tables(runs), *evaluation_tables(runs), *attack_tables(runs)]
    shown = "\n".join(table.to_markdown() for table in tables)
    check_lines(shown)
    json.dumps([plain_numbers(run.numbers()) for run in runs])
    if drawn(random, 0.1):
        check_markdown(shown)
    if drawn(random, 0.05):
        check_shown(*(table.to_rich() for table in tables))
    if drawn(random, 0.02):
        check_lines(str(model_card(folders[0], before=folders[1], what=random.choice(["model", "mask"]))))
    if drawn(random, 0.001):
        check_markdown(write_document(runs, folders[0])[0][0].read_text(encoding="utf-8"))


def runs_with(file, sound, folder):
    """Examples of two runs, in the first of which a file is changed."""
    changed, other = folder / "changed", folder / "other"
    for seed, place in enumerate((changed, other)):
        place.mkdir()
        (place / REPORT_FILE).write_bytes(as_json(REPORT | {"options": REPORT["options"] | {"seed": seed}}))
        (place / EVALUATION_FILE).write_bytes(as_json(EVALUATION))
        mask_of_five().save(place)

    def example(random):
        (changed / file).write_bytes(changed_json(sound, random))
        return is_accepted(lambda: check_runs([changed, other], random), changed / file)

    return example


def changed_lines(rows, random):
    """Lines of JSON, of which one is changed."""
    lines = [as_json(row) for row in rows]
    place = random.randrange(len(lines))
    lines[place] = changed_json(rows[place], random)
    if drawn(random, 0.1):
        return b"[" + b",".join(lines) + b"]"
    content = b"\n".join(lines) + b"\n"
    return changed_bytes(content, random) if drawn(random, 0.1) else content


def records(folder):
    path = folder / "records.jsonl"

    def read(names, summarized):
        retrained = read_retrained_records(path, {name: SETS[name] for name in names}, EvalOptions())
        if summarized:
            summarize_all(RECORDS, retrained)

    def example(random):
        path.write_bytes(changed_lines(RECORDS, random))
        names = SETS if drawn(random, 0.2) else ["forget"]  # areas under curves take long
        return is_accepted(lambda: read(names, drawn(random, 0.2)), path)

    return example


def partial(folder):
    path = folder / "partial.jsonl"
    lines = [{"key": "key"}, *RECORDS]

    def read(summarized):
        found = PartialRecords(path, "key").records
        assert PartialRecords(path, "key").records == found
        if summarized:
            summarize_all([*RECORDS, *found])

    def example(random):
        path.write_bytes(changed_lines(lines, random))
        return is_accepted(lambda: read(drawn(random, 0.05)), path)

    return example


def tuned(folder):
    path = folder / "runs.jsonl"
    columns = {"step": [0, 5], "forget": [0.9, 0.05], "retain": [0.9, 0.8]}
    run = {"options": {"learning_rate": 1e-4}, "length": 5, "steps": 5, "trajectory": columns, "diverged": None}

    def read():
        for run in PartialRecords(path, "key", TunedRun).records:
            assert merit(run, 0.1) and described(run)

    def example(random):
        path.write_bytes(changed_lines([{"key": "key"}, run, run | {"diverged": "NaN"}], random))
        return is_accepted(read, path)

    return example


def rows(folder, tokenizers):
    path = folder / "rows.jsonl"

    def read(tokenizer, formats):
        dataset = load_rows(path)
        if formats:
            to_trl(dataset, tokenizer)
        for row in dataset.to_list():
            with contextlib.suppress(ValueError):  # of a row without an answer, which is named by its set
                prepare_rows([row], "forget", tokenizer)

    def example(random):
        row = random.choice(ROWS)
        path.write_bytes(changed_lines([row] * 3, random))
        return is_accepted(lambda: read(random.choice(tokenizers), drawn(random, 0.02)), path.name)

    return example


def refusals(folder):
    table = b'refusal\nI do not know.\n"That, I cannot say."\nNobody told me.\n'
    contents = {
        "r.csv": table,
        "r.txt": table,
        "r.jsonl": as_json("No.") + b"\n" + as_json({"refusal": "I cannot say."}),
    }

    def example(random):
        name, content = random.choice(list(contents.items()))
        (folder / name).write_bytes(changed_bytes(content, random))
        return is_accepted(lambda: load_refusals(folder / name), name)

    return example


def index(folder):
    model_folder(folder / "model")
    (folder / "model" / "model.safetensors").rename(folder / "model" / "one.safetensors")
    path = folder / "model" / "model.safetensors.index.json"
    sound = {"metadata": {"total_size": 9}, "weight_map": dict.fromkeys(base_model().state_dict(), "one.safetensors")}

    def read():
        checkpoint = Checkpoint(path.parent)
        assert all(checkpoint[name].shape == checkpoint.shape(name) for name in checkpoint)
        check_lines(ascii(checkpoint.load_dtypes))

    def example(random):
        path.write_bytes(changed_json(sound, random))
        return is_accepted(read, path.parent)

    return example


def config(folder):
    base, changed = model_folder(folder / "base"), model_folder(folder / "changed")
    (base / "config.json").write_bytes(as_json(CONFIG))
    mask_of_five().save(changed)
    path = changed / "config.json"

    def read(loaded):
        for before, after in ((base, Checkpoint(changed).folder), (changed, base)):
            for key, values in config_changes(before, after).items():
                check_lines(" ".join((key, *values)))
        if loaded:
            check_shown(*verify.run([str(base), str(changed)], "verify").tables)
            with loading(str(changed)):
                AutoConfig.from_pretrained(changed)

    def example(random):
        path.write_bytes(changed_json(CONFIG, random))
        return is_accepted(lambda: read(drawn(random, 0.05)), changed)

    return example


def adapter(folder):
    run, stage = folder / "run", folder / "stage"
    run.mkdir()
    stage.mkdir()
    save_file({"a": torch.zeros(2)}, run / "adapter_model.safetensors")
    path = run / "adapter_config.json"

    def read():
        for staged in stage.iterdir():
            staged.unlink()
        stage_model(run, stage, None, needs_base=False)
        json.loads((stage / path.name).read_bytes())

    def example(random):
        path.write_bytes(changed_json(ADAPTER, random))
        return is_accepted(read, path, stage / path.name)

    return example


@dataclass
class Loading:
    """An option of many that takes a mapping."""

    model_init_kwargs: dict | str | None = None


def options(folder):
    path = folder / "options.yaml"
    small = [MaskConfig, EvalOptions, AttackConfig, Loading]
    large = [*option_types("npo"), AttackConfig]

    def read(types):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            WagleParser(types, prog="wagle npo", allow_abbrev=False).parse_args_and_config([f"--config={path}"])
        check_lines(said.getvalue())

    def example(random):
        names = {key: value for key, value in OPTIONS.items() if drawn(random, 0.7)}
        if drawn(random, 0.3):
            path.write_bytes(changed_json(names, random))
        else:
            path.write_bytes(changed_bytes(YAML, random))
        return is_accepted(lambda: read(large if drawn(random, 0.03) else small), path)

    return example


EXAMPLES_OF = {
    "report": lambda folder: runs_with(REPORT_FILE, REPORT, folder),
    "evaluation": lambda folder: runs_with(EVALUATION_FILE, EVALUATION, folder),
    "records": records,
    "partial": partial,
    "tuned": tuned,
    "index": index,
    "config": config,
    "adapter": adapter,
    "options": options,
    "refusals": refusals,
}


@PARTS
@pytest.mark.parametrize("kind", EXAMPLES_OF)
def test_a_text_changed_anywhere_does_no_harm(kind, part, record_property):
    fuzz(kind, part, EXAMPLES_OF[kind], record_property)


@PARTS
def test_rows_changed_anywhere_do_no_harm(part, tiny_tokenizer, record_property):
    chat = copy.deepcopy(tiny_tokenizer)
    chat.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    fuzz("rows", part, lambda folder: rows(folder, [tiny_tokenizer, chat]), record_property)
