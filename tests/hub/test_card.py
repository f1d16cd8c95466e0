import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from wagle_trl import GradDiffTrainer, NPOTrainer
from wagle_trl.attribution.report import mask_report
from wagle_trl.deltas.delta import SparseDelta
from wagle_trl.deltas.merging import merge_deltas
from wagle_trl.hub import card as card_module
from wagle_trl.hub.card import base_licence, model_card, read_card
from wagle_trl.masks.info import MaskInfo
from wagle_trl.masks.mask import WeightMask
from wagle_trl.objectives.names import OBJECTIVES

from ..support.fuzzing import check_lines
from ..support.hostile import check_error

COMMIT, DIGEST = "0123456789abcdef0123456789abcdef01234567", "ab" * 32
TOFU = {"source": "locuslab/TOFU", "revision": COMMIT, "split": "train", "sha256": DIGEST}
DATA = {
    "forget": TOFU | {"config": "forget10", "rows": 400},
    "retain": TOFU | {"config": "retain90", "rows": 3600, "sha256": "cd" * 32},
}
TRAINING = {
    "objective": "NPO",
    "paper": asdict(NPOTrainer._paper),
    "base_model": "user/base",
    "base_revision": "f" * 40,
    "base_is_local": False,
    "peft_type": None,
    "data": DATA,
    "options": {"learning_rate": 1e-05, "num_train_epochs": 10.0, "max_steps": -1, "beta": 0.1, "max_length": None},
    "log_history": [
        {"forget_probability": 0.9, "retain_probability": 0.95, "step": 0},
        {"forget_probability": 0.1, "retain_probability": 0.8, "step": 120},
    ],
    "versions": {"trl": "1.16.0", "torch": "2.13.0"},
}
BEFORE = {"forget_prob": 0.99, "retain_prob": 0.98, "model_utility": 0.61}
EVALUATION = {
    "model": "/home/me/out",
    "base_model": "user/base",
    "options": {"tofu_split": "forget10", "tofu_dir": "/home/me/tofu"},
    "forget_prob": 0.1234,
    "retain_prob": 0.9,
    "model_utility": 0.6,
    "forget_quality": float("nan"),
    "attacks": {
        "relearn": {"forget_prob": 0.51, "rows": {"forget": 5}},
        "quantize_int4": {"forget_prob": 0.14, "retain_prob": 0.87, "rounding": "nearest"},
    },
}


@pytest.fixture
def mask() -> WeightMask:
    """Two of 24 weights of two layers and a norm."""
    dense = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(2, 5) for i in range(2)}
    dense["model.layers.1.mlp.up_proj.weight"][0, :2] = 1
    info = MaskInfo(score="wagle", gamma="balanced", eps=1.0, scope=(), exclude=("*bias*",))
    return WeightMask.from_dense(dense | {"model.norm.weight": torch.zeros(4)}, info)


@pytest.fixture
def make_folder(tmp_path, mask):
    """Writes the folder of a run; `None` leaves a file out."""

    def make(name="run", training=TRAINING, evaluation=None, masked=True, picture=False):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if masked:
            mask.save(folder)
            training = training and training | {"mask": mask_report(mask)}
        for file, content in (("wagle_report.json", training), ("wagle_eval.json", evaluation)):
            if content is not None:
                (folder / file).write_text(json.dumps(content))
        if picture:
            (folder / "wagle_mask.png").touch()
        return folder

    return make


@pytest.fixture(autouse=True)
def fresh_licences():
    base_licence.cache_clear()


def section(card: ModelCard, title: str) -> str:
    return card.text.split(f"## {title}\n")[1].split("\n## ")[0]


def table(text: str) -> dict[str, list[str]]:
    """Cells of every line of Markdown tables, by the first."""
    lines = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {line[0].strip(): line[1:] for line in lines}


# Metadata


def test_metadata_is_what_the_hub_reads(make_folder):
    folder = make_folder(evaluation=EVALUATION)
    data = ModelCard(model_card(folder, repo_id="user/tiny-npo", license="mit").content).data
    assert data.base_model == "user/base"
    assert data.base_model_relation == "finetune"
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "text-generation", "mit")
    assert data.datasets == ["locuslab/TOFU"]
    assert data.model_name == "tiny-npo"
    assert data.tags == ["generated_from_trainer", "trl", "wagle-trl", "unlearning", "npo"]


def test_results_are_those_after_unlearning_clean_and_under_each_attack(make_folder):
    results = ModelCard(model_card(make_folder(evaluation=EVALUATION)).content).data.eval_results
    assert {(r.dataset_config, r.metric_type): r.metric_value for r in results} == {
        ("forget10", "forget_prob"): 0.1234,
        ("forget10", "retain_prob"): 0.9,
        ("forget10", "model_utility"): 0.6,
        ("forget10 under attack: relearn", "forget_prob"): 0.51,
        ("forget10 under attack: int4 (nearest)", "forget_prob"): 0.14,
        ("forget10 under attack: int4 (nearest)", "retain_prob"): 0.87,
    }
    assert {(r.task_type, r.dataset_type, r.dataset_name) for r in results} == {
        ("text-generation", "locuslab/TOFU", "TOFU")
    }
    assert results[0].metric_name == "Answer probability: forget"


@pytest.mark.parametrize(
    "what, adapter, library, relation, tag",
    [
        ("model", False, "transformers", "finetune", "npo"),
        ("model", True, "peft", "adapter", "npo"),
        ("mask", False, "wagle-trl", "adapter", "weight-mask"),
        ("delta", False, "wagle-trl", "adapter", "sparse-delta"),
    ],
)
def test_what_the_repository_holds_decides_library_and_relation(what, adapter, library, relation, tag, make_folder):
    folder = make_folder(training=TRAINING | {"peft_type": "LORA" if adapter else None})
    data = model_card(folder, what=what).data
    assert (data.library_name, data.base_model_relation, data.tags[-1]) == (library, relation, tag)
    assert ("npo" in data.tags) == (what != "mask")
    assert (data.pipeline_tag is None) == (what == "mask")


@pytest.mark.parametrize(
    "objective, tags",
    [(trainer._name, trainer._tag_names[-1:]) for trainer in OBJECTIVES.values()]
    + [("Masked SFT", ["sft"]), ("My own: v2", ["my-own-v2"])],
)
def test_the_objective_is_a_tag(objective, tags, make_folder):
    data = model_card(make_folder(training=TRAINING | {"objective": objective})).data
    assert data.tags[-len(tags) :] == tags


# Content


def test_parts_come_in_order_and_none_is_empty(make_folder):
    card = model_card(make_folder(evaluation=EVALUATION, picture=True))
    titles = re.findall(r"^## (.*)$", card.text, re.M)
    assert titles == [
        "What was to be forgotten",
        "How",
        "Evaluation",
        "Base model and licence",
        "How to load",
        "How to verify",
        "Versions",
        "Citations",
    ]
    assert all(section(card, title).strip() for title in titles)
    assert "None" not in card.content
    assert "\n\n\n" not in card.content


def test_it_says_what_was_forgotten(make_folder):
    text = section(model_card(make_folder()), "What was to be forgotten")
    link = "[locuslab/TOFU](https://huggingface.co/datasets/locuslab/TOFU)"
    assert (
        f"- Rows to forget: 400 rows of {link}, config `forget10`, split `train`, revision `{COMMIT}`, "
        f"SHA-256 `{DIGEST}`\n" in text
    )
    assert "- Rows to keep: 3,600 rows of" in text
    assert "keyed digest" not in text


def test_it_says_how(make_folder):
    text = section(model_card(make_folder()), "How")
    assert "- Objective: NPO ([arXiv 2404.05868](https://arxiv.org/abs/2404.05868))\n" in text
    assert "- Mask: 2 of the 24 weights in scope (8.33%)\n" in text
    assert "- Score: `wagle` ([arXiv 2410.17509](https://arxiv.org/abs/2410.17509))\n" in text
    assert "- γ: `balanced`\n- Scope: all trainable weights but embeddings and LM head\n" in text
    assert '- Left out of the scope: `["*bias*"]`' in text
    rows = table(text)
    assert (rows["0"], rows["1"], rows["other"]) == (["0%"], ["20%"], ["0%"])
    assert (rows["learning rate"], rows["num train epochs"], rows["beta"]) == (["1e-05"], ["10.0"], ["0.1"])
    assert rows["optimizer steps taken"] == ["120"]
    assert not {"max steps", "max length"} & rows.keys()


def test_epochs_are_left_out_where_steps_counted(make_folder):
    options = TRAINING["options"] | {"max_steps": 50}
    rows = table(section(model_card(make_folder(training=TRAINING | {"options": options})), "How"))
    assert rows["max steps"] == ["50"]
    assert "num train epochs" not in rows


def test_the_steps_are_those_of_the_weights_not_of_the_last_log(make_folder):
    rows = table(section(model_card(make_folder(training=TRAINING | {"steps": 125})), "How"))
    assert rows["optimizer steps taken"] == ["125"]


@pytest.mark.parametrize("weight, told", [(1.0, " and to keep those in a retain set."), (0.0, ".")])
def test_retain_rows_that_did_not_count_are_not_said_to(weight, told, make_folder):
    card = model_card(make_folder(training=TRAINING | {"options": {"retain_weight": weight}}))
    assert f"training to give the answers in a forget set no longer{told} Only" in card.text


@pytest.mark.parametrize("masked, method", [(True, "Masked SFT"), (False, "SFT")])
def test_training_without_a_mask_is_not_called_masked(masked, method, make_folder):
    training = TRAINING | {"objective": "Masked SFT", "data": {"train": DATA["retain"]}, "mask": None, "paper": None}
    text = model_card(make_folder(training=training, masked=masked)).text
    assert f"after training with {method}." in text and f"- Objective: {method}\n" in text


def test_files_of_an_earlier_run_are_not_of_this_one(make_folder, mask):
    folder = make_folder(training=TRAINING | {"mask": None}, masked=False, picture=True)
    mask.save(folder)
    (folder / "adapter_config.json").write_text("{}")
    card = model_card(folder)
    assert "- Mask: none, all trainable weights were trained\n" in card.text
    assert "24 weights" not in card.text and "wagle_mask.png" not in card.text
    assert card.data.library_name == "transformers"
    for what in ("mask", "delta"):
        with pytest.raises(ValueError, match="has no mask, only a model"):
            model_card(folder, what=what)


@pytest.mark.parametrize("picture", [True, False])
def test_the_picture_is_shown_where_it_is(picture, make_folder):
    assert ("](wagle_mask.png)" in model_card(make_folder(picture=picture)).text) == picture


@pytest.mark.parametrize("measured", ["another", "unlearned"])
def test_an_evaluation_before_must_be_of_the_model_that_the_run_started_from(measured, make_folder, tmp_path):
    info = {"score": "random", "fingerprint": "base"} if measured == "another" else {"score": "random"}
    mask = {"num_selected": 1, "numel": 2, "density": 0.5, "density_by_layer": {}, "info": info}
    training = TRAINING | {"steps": 120, "fingerprint": "unlearned", "mask": mask}
    (tmp_path / "before").mkdir()
    path = tmp_path / "before" / "wagle_eval.json"
    path.write_text(json.dumps(BEFORE | {"fingerprint": measured}))
    folder = make_folder(training=training, evaluation=EVALUATION, masked=False)
    with pytest.raises(ValueError, match="is not of the model that the run in"):
        model_card(folder, before=path.parent)
    path.write_text(json.dumps(BEFORE | {"fingerprint": "base"}))
    assert "before" in section(model_card(folder, before=path.parent), "Evaluation")


def test_the_evaluation_compares_before_after_and_attacks(make_folder):
    before = make_folder("before", training=None, masked=False, evaluation=BEFORE)
    text = section(model_card(make_folder(evaluation=EVALUATION), before=before), "Evaluation")
    rows = table(text)
    assert rows[""] == ["before", "after", "relearn", "int4 (nearest)"]
    assert rows["Answer probability: forget"] == ["0.990", "0.123", "0.510", "0.140"]
    assert rows["Answer probability: retain"] == ["0.980", "0.900", "", "0.870"]
    assert rows["Model utility"] == ["0.610", "0.600", "", ""]
    assert "Forget quality (p)" not in rows  # not a number
    assert (rows["rows"], rows["forget"], rows["retain"]) == (
        ["step 0", "step 120"],
        ["0.900", "0.100"],
        ["0.950", "0.800"],
    )
    assert "On [TOFU](https://huggingface.co/datasets/locuslab/TOFU), `forget10`:" in text
    assert "Under relearn, the forget rows are those that relearning did not train on." in text
    assert "Unlearning is not deletion" in text


def test_a_run_that_was_not_evaluated_says_so(make_folder):
    text = section(model_card(make_folder()), "Evaluation")
    assert "No evaluation is recorded beside this card." in text
    assert "Unlearning is not deletion" in text


@pytest.mark.parametrize(
    "trained, evaluated, is_shown",
    [("a", "a", True), ("b", "a", False), ("a", None, True), (None, "a", True)],
    ids=["same weights", "other weights", "older evaluation", "older report"],
)
def test_an_evaluation_of_other_weights_is_left_out(trained, evaluated, is_shown, make_folder):
    training, evaluation = (
        content | ({"fingerprint": fingerprint} if fingerprint else {})
        for content, fingerprint in ((TRAINING, trained), (EVALUATION, evaluated))
    )
    card = model_card(make_folder(training=training, evaluation=evaluation))
    text = section(card, "Evaluation")
    assert ("Answer probability: forget" in text) == is_shown
    assert bool(card.data.eval_results) == is_shown
    assert ("wagle_eval.json in its folder is of other weights. It is left out.\n" in text) != is_shown
    assert "No evaluation is recorded" not in text


@pytest.mark.parametrize(
    "what, loads",
    [
        ("model", 'AutoModelForCausalLM.from_pretrained("user/r")'),
        ("mask", 'WeightMask.from_pretrained("user/r")'),
        ("delta", 'load_unlearned("user/r")'),
    ],
)
def test_it_says_how_to_load_and_to_verify(what, loads, make_folder):
    card = model_card(make_folder(), what=what, repo_id="user/r")
    assert loads in section(card, "How to load")
    given = f"--base_revision {'f' * 40}"
    commands = {
        "model": f"```bash\nwagle verify user/base user/r {given}\n```",
        "delta": f"```bash\nwagle apply user/r --output_dir unlearned\nwagle verify user/base unlearned {given}\n```",
    }
    assert what not in commands or commands[what] in section(card, "How to verify")
    assert ("wagle verify" in card.text) == (what in commands)


def test_a_base_that_is_not_on_the_hub_is_a_place_in_the_commands(make_folder):
    card = model_card(make_folder(training=TRAINING | {"base_is_local": True}), what="delta")
    assert "wagle apply path/to/this/folder path/to/base --output_dir unlearned\n" in card.text
    assert "wagle verify path/to/base unlearned\n" in card.text


def test_adapters_are_loaded_with_peft_and_have_no_mask_to_verify(make_folder):
    folder = make_folder(training=TRAINING | {"peft_type": "LORA"}, masked=False)
    card = model_card(folder, repo_id="user/r")
    assert 'AutoPeftModelForCausalLM.from_pretrained("user/r")' in card.text
    assert "Adapters for [user/base](https://huggingface.co/user/base), from unlearning with NPO" in card.text
    assert "wagle verify" not in card.text


GRAD_DIFF = {"objective": "GradDiff", "paper": asdict(GradDiffTrainer._paper)}


def test_papers_of_objective_and_score_are_cited(make_folder):
    text = section(model_card(make_folder(training=TRAINING | GRAD_DIFF)), "Citations")
    assert all(name in text for name in ("{2203.12817}", "@misc{liu2022,", "{2410.17509}", "vonwerra2020trl"))
    assert "2404.05868" not in text


def test_a_mask_has_no_results_of_a_model(make_folder):
    card = model_card(make_folder(evaluation=EVALUATION), what="mask")
    assert card.data.eval_results is None
    assert "## Evaluation" not in card.text
    assert "learning rate" not in card.text
    assert "2404.05868" not in card.text


def test_training_on_rows_is_not_called_forgetting(make_folder):
    data = {"train": DATA["retain"], "forget": DATA["forget"]}
    card = model_card(make_folder(training=TRAINING | {"objective": "Masked SFT", "data": data}))
    assert "- Rows trained on: 3,600 rows" in section(card, "Data")
    assert "- Rows to forget: 400 rows" in section(card, "Data")
    assert "unlearning" not in card.data.tags
    assert "deletion" not in card.text


def test_a_mask_that_trained_nothing_changed_nothing(make_folder):
    folder = make_folder(training=TRAINING | {"objective": "mask"})
    assert "weights in scope (8.33%) were changed" not in model_card(folder).text
    assert "one bit per weight, which marks those that training may change." in model_card(folder, what="mask").text


def test_a_mask_for_training_on_rows_is_not_one_for_unlearning(make_folder):
    training = TRAINING | {"objective": "Masked SFT", "data": {"train": DATA["retain"]}}
    card = model_card(make_folder(training=training), what="mask")
    assert "unlearning" not in card.data.tags
    assert "- Rows trained on: 3,600 rows" in section(card, "Data")


def test_nothing_is_said_of_how_where_nothing_is_known(make_folder):
    folder = make_folder(training=None, masked=False, evaluation=EVALUATION)
    (folder / "adapter_config.json").write_text("{}")
    text = model_card(folder).text
    assert "Adapters for" in text and "## How\n" not in text and "were trained" not in text


def test_unseen_rows_are_not_of_tofu(make_folder):
    assert "but for the unseen rows" not in model_card(make_folder("seen", evaluation=EVALUATION)).text
    card = model_card(make_folder(evaluation=EVALUATION | {"unseen_retain_prob": 0.7}))
    assert "`forget10` (but for the unseen rows):\n" in card.text
    data_sets = {result.metric_type: result.dataset_type for result in card.data.eval_results}
    assert (data_sets["unseen_retain_prob"], data_sets["retain_prob"]) == ("unlearning", "locuslab/TOFU")


# Deltas


@pytest.fixture
def delta(mask) -> SparseDelta:
    """New values of the two weights."""
    new = {name: torch.ones(mask.num_selected_of(name)) for name in mask.bits}
    info = replace(mask.info, base_model="user/base", base_revision=COMMIT)
    return SparseDelta(WeightMask(mask.bits, mask.shapes, info), new, dict.fromkeys(mask.bits, torch.float32), "ab")


def test_a_delta_alone_has_a_card(delta, tmp_path):
    delta.save(tmp_path)
    card = model_card(tmp_path, what="delta")
    assert (
        "A sparse delta: the values that training gave 2 of the 24 weights in scope (8.33%) of [user/base]"
        in card.text
    )
    assert f"revision `{COMMIT}`" in section(card, "Base model and licence")
    assert "- Score: `wagle` (" in section(card, "How")


def test_a_merged_delta_is_not_called_trained(delta, tmp_path):
    merged = merge_deltas([delta, delta]).delta
    merged.save(tmp_path)
    merged.mask.save(tmp_path)
    card = model_card(tmp_path, what="delta")
    assert "A sparse delta, merged from several: the values that they give 2 of the 24 weights" in card.text
    assert "- Merged from: `2 by wagle, 2 by wagle`\n" in section(card, "How")
    assert "Score" not in card.text and "train" not in card.text.split("## Citations")[0]


def test_a_delta_trained_with_a_merged_mask_is_not_called_merged(delta, make_folder):
    merged = merge_deltas([delta, delta]).delta
    folder = make_folder()
    merged.save(folder)
    assert "A sparse delta: the values that NPO gave 2 of the 24 weights" in model_card(folder, what="delta").text


# Base model and licence


def test_the_revision_of_the_base_model_is_named(make_folder):
    text = section(model_card(make_folder()), "Base model and licence")
    assert f"[user/base](https://huggingface.co/user/base), revision `{'f' * 40}`." in text
    assert "The licence of the base model applies." in text


def test_a_local_base_model_is_not_named(make_folder):
    card = model_card(make_folder(training=TRAINING | {"base_model": "out/known", "base_is_local": True}))
    assert "This is a local model after unlearning" in card.text
    assert (card.data.base_model, card.data.get("base_model_relation")) == (None, None)
    assert "out/known" not in card.content


def test_the_base_model_on_the_hub_can_be_named_for_a_local_one(make_folder):
    folder = make_folder(training=TRAINING | {"base_model": "/models/base", "base_is_local": True})
    card = model_card(folder, base_model="user/public")
    assert card.data.base_model == "user/public"
    assert "revision `" not in section(card, "Base model and licence")


@pytest.mark.parametrize(
    "metadata, expected",
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        (
            "license: other\nlicense_name: mine-1.0\nlicense_link: LICENSE",
            {"license": "other", "license_name": "mine-1.0"},
        ),
        ("license: [a, b]", {}),
        ("license: 'x | y'", {}),
        ("license: [", {}),
    ],
)
def test_the_licence_is_that_of_the_base_models_card(metadata, expected, make_folder, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text(f"---\n{metadata}\n---\n")
    card = model_card(make_folder(training=TRAINING | {"base_model": str(tmp_path / "base"), "base_is_local": True}))
    assert {key: card.data.get(key) for key in expected} == expected
    assert ("The licence of the base model applies." in card.text) == (not expected)
    assert (", that of the base model." in card.text) == bool(expected)


def test_the_licence_of_a_base_in_a_folder_that_is_gone_is_not_looked_up(make_folder, monkeypatch):
    monkeypatch.setattr(card_module, "base_licence", lambda name: {"license": "of-somebody-else"})
    card = model_card(make_folder(training=TRAINING | {"base_model": "out/known", "base_is_local": True}))
    assert card.data.license is None
    assert "The licence of the base model applies." in card.text


# What is not known, and what must not be


@pytest.mark.parametrize(
    "options", [{"evaluation": EVALUATION}, {"training": None}, {"training": None, "evaluation": EVALUATION}]
)
@pytest.mark.parametrize("what", ["model", "mask", "delta"])
def test_a_card_comes_out_of_whatever_files_there_are(options, what, make_folder):
    card = model_card(make_folder(**options), what=what)
    assert "None" not in card.content
    assert "\n\n\n" not in card.content
    assert "2 of the 24 weights in scope" in card.text


def test_a_card_comes_out_of_an_evaluation_alone(make_folder):
    card = model_card(make_folder(training=None, masked=False, evaluation=EVALUATION))
    assert (
        "This is [user/base](https://huggingface.co/user/base) after training that is not recorded here." in card.text
    )
    assert card.data.eval_results


def test_hashed_rows_are_named_nowhere(make_folder):
    folder = make_folder(evaluation=EVALUATION)
    assert "tofu" in model_card(folder).content.lower()
    card = model_card(folder, hash_forget_set=True)
    for name in ("tofu", "locuslab", "forget10", "retain90", COMMIT):
        assert name not in card.content.lower()
    assert "- Rows to forget: 400 rows\n" in card.text  # by the digest of rows that all can read, they could be found
    assert DIGEST not in card.content and "digest" not in card.text
    assert "datasets" not in card.data.to_dict()
    assert card.data.eval_results[0].dataset_type == "unlearning"


@pytest.mark.parametrize("hashed", [True, False])
def test_rows_of_ones_own_have_a_keyed_digest_only(hashed, make_folder):
    rows = {"source": "rows.jsonl", "revision": None, "rows": 3, "sha256": DIGEST, "hmac_sha256": "ef" * 32}
    card = model_card(make_folder(training=TRAINING | {"data": {"forget": rows}}), hash_forget_set=hashed)
    assert f"HMAC-SHA-256 `{'ef' * 32}`\n" in card.text and DIGEST not in card.content
    assert "only those who have the rows and the key can compare it. The number of rows is public" in card.text


def test_no_local_path_leaks(make_folder, tmp_path):
    local = {"source": "/home/me/private/rows.jsonl", "revision": None, "rows": 3, "sha256": DIGEST}
    training = TRAINING | {"base_model": "/home/me/base", "base_is_local": True, "data": {"forget": local}}
    training["options"] = {"refusals": "/home/me/private/refusals.txt"}
    folder = make_folder(training=training, evaluation=EVALUATION | {"base_model": "/home/me/base"})
    card = model_card(folder)
    assert "3 rows of `rows.jsonl`" in card.text and table(section(card, "How"))["refusals"] == ["refusals.txt"]
    assert "refusals" not in model_card(folder, hash_forget_set=True).text
    assert "/home" not in card.content
    assert str(tmp_path) not in card.content


HOSTILE = [
    "{{ 7*7 }}{% raw %}",
    "a | b\n| --- |\n| c |",
    "x\n---\nlicense: mit\n---\n# Owned",
    "`<script>alert(1)</script>` ```",
    "](https://evil.example) ![x](y)",
    "<!--",
    "```",
    "user/name\n",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_run_is_shown_and_means_nothing(text, make_folder):
    rows = {"source": text, "revision": text, "config": text, "split": text, "rows": 3, "sha256": text}
    training = TRAINING | {
        "objective": text,
        "base_model": text,
        "base_revision": text,
        "data": {"forget": rows, text: rows},
        "options": {text: text},
        "versions": {text: text},
        "log_history": [{"forget_probability": 0.9, f"{text}_probability": 0.9, "step": step} for step in (0, 1)],
    }
    evaluation = EVALUATION | {f"{text}_prob": 0.5, text: 0.5, "attacks": {text: {"forget_prob": 0.1}}}
    evaluation["options"] = {"forget": text}
    card = model_card(make_folder(training=training, evaluation=evaluation), model_name=text)
    prose = re.sub(r"```.*?```|`[^`\n]*`|\\.", "", card.text, flags=re.S)
    assert not re.search(
        r"<(?!/?(details|summary)>|!-- wagle-trl: (measured|end) -->)|\]\((?!https://(huggingface\.co|arxiv\.org)/)|`",
        prose,
    )
    assert "49" not in prose
    assert card.text.count("\n# ") == 1
    assert "\n---\n" not in card.text
    assert (card.data.license, card.data.base_model, card.data.datasets) == (None, None, None)
    yaml.safe_load(card.data.to_yaml())
    assert ModelCard(card.content).content == card.content
    for lines in re.findall(r"(?:^\|.*\n)+", card.text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_the_base_model_means_nothing_either(text, make_folder, monkeypatch):
    monkeypatch.setattr(card_module, "base_licence", lambda name: {"license": "other", "license_name": text})
    card = model_card(make_folder(training=TRAINING | {"base_revision": text + "`<b>"}))
    said = section(card, "Base model and licence")
    assert not re.search("<|`", re.sub(r"`[^`\n]*`", "", said))
    assert "revision" not in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"what": "weights"}, r"what must be one of model, mask, delta, got 'weights'\."),
        ({"folder": "empty"}, r"No card can be written from '.*empty': it holds none of wagle_report\.json, "),
        ({"what": "mask"}, r"holds no mask \(wagle_mask\.safetensors\)"),
        ({"before": "empty"}, r"'.*empty' holds no wagle_eval\.json; give the folder of `wagle eval`"),
    ],
)
def test_bad_input_is_named(arguments, message, make_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = {key: tmp_path / value for key, value in arguments.items() if key in ("folder", "before")}
    with pytest.raises(ValueError, match=message):
        model_card(**{"folder": make_folder(masked=False)} | arguments | paths)


def test_the_folder_names_the_model_where_nothing_else_does(make_folder, monkeypatch):
    folder = make_folder("my_run")
    monkeypatch.chdir(folder)
    assert model_card(os.curdir).text.startswith("\n# my\\_run\n")
    assert Path(folder, "README.md").exists() is False


# Text of others

HOSTILE = "[/x](y)|`*a*` <b>\n---\n# {{ 7 * 7 }} \x1b[2J\u202e\u200b"


def test_text_of_files_is_shown_as_text(make_folder, tmp_path):
    training = TRAINING | {
        "objective": HOSTILE,
        "base_model": HOSTILE,
        "data": {HOSTILE: {"rows": 3, "source": HOSTILE, "split": HOSTILE, "sha256": HOSTILE}},
        "options": {HOSTILE: HOSTILE, "max_steps": None},
        "versions": {HOSTILE: HOSTILE},
    }
    evaluation = {f"{HOSTILE}_prob": 0.5, "attacks": {HOSTILE: {"forget_prob": 0.5}}}
    card = model_card(make_folder(training=training, evaluation=evaluation))
    check_lines(str(card))
    assert "49" not in card.text and "<b>" not in re.sub("`[^`]*`", "", card.text.replace(r"\<", ""))
    assert re.findall(r"^#+ .*$", card.text, re.MULTILINE)[0] == "# run"
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


@pytest.mark.parametrize(
    "text",
    ["---\n1: 2\n---\n", "---\na: [\n---\n", "---\na: !!int ''\n---\n", "---\n[1]\n---\n", "---\na: \x1b\n---\n"],
)
def test_a_card_of_ones_own_that_is_none_is_named(text, tmp_path):
    (tmp_path / "mine.md").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.md is not a model card: ") as caught:
        read_card(tmp_path / "mine.md")
    check_error(caught.value)
    (tmp_path / "README.md").write_text(text)
    assert base_licence(str(tmp_path)) == {}


def test_a_card_of_ones_own_is_read(tmp_path):
    (tmp_path / "mine.md").write_text("---\nlicense: mit\n---\nHello", encoding="utf-8-sig")
    assert read_card(tmp_path / "mine.md").data.license == "mit"
