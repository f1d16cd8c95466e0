"""What an unlearning trainer makes of its rows, and that evaluation makes the same of them."""

import copy
import json

import pytest
from datasets import Dataset

from wagle_trl.cli.main import main
from wagle_trl.data.tokenization import tokenize_row
from wagle_trl.evaluation.samples import prepare_rows
from wagle_trl.evaluation.tofu import EvalOptions
from wagle_trl.trainers.run_report import run_report

from ..support.architectures import build
from ..support.rows import SHAPES, write_lines

THINKING = (  # a template with all that shapes of rows ask for
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>{{ m.reasoning_content or '' }}</think>"
    "{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% endif %}{% endif %}"
)
TOKENS = ["input_ids", "labels"]


@pytest.fixture
def chat_tokenizer(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = THINKING
    return tokenizer


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tokens_of_training_are_those_of_evaluation(shape, make_trainer, tiny_model, chat_tokenizer, tmp_path):
    row = SHAPES[shape]
    other = {"question": "Who is Bo?", "answer": "Bo is a baker."}
    trainer = make_trainer(
        model=tiny_model(max_position_embeddings=1024),
        processing_class=chat_tokenizer,
        train_dataset=Dataset.from_list([row]),
        retain_dataset=Dataset.from_list([other]),
        eval_dataset={"same": Dataset.from_list([row])},
    )
    (trained,), (retained,) = (trainer.train_dataset.to_list(), trainer.retain_dataset.to_list())
    (watched,) = trainer.eval_dataset["same"].to_list()
    (sample,) = prepare_rows([row], "forget", chat_tokenizer)
    assert {name: trained[name] for name in TOKENS} == {name: watched[name] for name in TOKENS} == sample.answers[0]
    assert {name: retained[name] for name in TOKENS} == tokenize_row(other, chat_tokenizer)
    assert sample.prompt + [label for label in trained["labels"] if label != -100] == trained["input_ids"]


def test_options_that_decide_what_is_scored_reach_the_evaluation(make_trainer, forget_rows, tmp_path, capsys):
    trainer = make_trainer(completion_only_loss=False, max_length=24, long_rows="truncate", max_steps=1)
    trainer.train()
    trainer.save_model()
    expected = {"completion_only_loss": False, "max_length": 24, "truncation_mode": "keep_start"}
    report = json.loads((tmp_path / "out" / "wagle_report.json").read_text())
    assert report["tokenization"].items() >= (expected | {"formatting_func": False}).items()
    rows = write_lines(tmp_path / "forget.jsonl", forget_rows)
    arguments = ["eval", "--model_name_or_path", str(tmp_path / "out"), "--forget_dataset", str(rows)]
    assert main([*arguments, "--generate", "false", "--output_dir", str(tmp_path / "eval")]) == 0
    evaluation = json.loads((tmp_path / "eval" / "wagle_eval.json").read_text())
    assert evaluation["options"].items() >= expected.items()
    assert main([*arguments, "--generate", "false", "--output_dir", str(tmp_path / "eval"), "--max_length", "30"]) == 0
    evaluation = json.loads((tmp_path / "eval" / "wagle_eval.json").read_text())
    assert evaluation["options"]["max_length"] == 30
    counted = [sum(label != -100 for label in labels[1:]) for labels in trainer.train_dataset["labels"]]
    samples = prepare_rows(forget_rows, "forget", trainer.processing_class, EvalOptions(**expected))
    assert [sum(label != -100 for label in s.answers[0]["labels"][1:]) for s in samples] == counted


@pytest.mark.parametrize("kind", ["npo", "masked_sft"])
def test_plain_text_may_stand_in_another_column(kind, make_trainer, tiny_tokenizer):
    rows = [Dataset.from_list([{"story": text}]) for text in ("Ada lives in Oslo.", "Bo lives in Lima.")]
    trainer = make_trainer(kind, dataset_text_field="story", train_dataset=rows[0], retain_dataset=rows[1])
    assert trainer.train_dataset[0]["labels"] == tokenize_row({"text": "Ada lives in Oslo."}, tiny_tokenizer)["labels"]


def test_rows_that_a_function_formatted_are_scored_whole(make_trainer, tiny_tokenizer):
    trainer = make_trainer(
        train_dataset=Dataset.from_list([{"who": "Ada", "where": "Oslo"}]),
        retain_dataset=Dataset.from_list([{"who": "Bo", "where": "Lima"}]),
        formatting_func=lambda row: f"{row['who']} lives in {row['where']}.",
    )
    assert trainer.train_dataset[0]["labels"] == tokenize_row({"text": "Ada lives in Oslo."}, tiny_tokenizer)["labels"]
    assert trainer.retain_dataset[0]["labels"] == tokenize_row({"text": "Bo lives in Lima."}, tiny_tokenizer)["labels"]
    assert run_report(trainer)["tokenization"]["formatting_func"] is True


LONG = [{"text": "Ada lives in Oslo. " * 12}, {"text": "Ada is a baker."}]


def test_a_forget_row_that_would_be_cut_is_refused(make_trainer):
    with pytest.raises(
        ValueError, match=r"Row 0 of the forget set is too long for max_length=32: .* stay in the model"
    ):
        make_trainer(max_length=32, train_dataset=Dataset.from_list(LONG))


def test_what_is_cut_stands_in_log_report_and_card(make_trainer, tiny_tokenizer, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        trainer = make_trainer(max_length=32, long_rows="truncate", train_dataset=Dataset.from_list(LONG), max_steps=1)
    given = sum(len(tokenize_row(row, tiny_tokenizer)["labels"]) - 1 for row in LONG)
    scored = sum(min(len(tokenize_row(row, tiny_tokenizer)["labels"]), 32) - 1 for row in LONG)
    said = f"1 of 2 rows are cut, {given - scored} answer tokens ({(given - scored) / given:.1%}) are not scored"
    trainer.train()
    trainer.save_model()
    report = json.loads((tmp_path / "out" / "wagle_report.json").read_text())
    assert report["answer_tokens"]["forget"] == {"rows": 2, "rows_cut": 1, "given": given, "scored": scored}
    assert report["answer_tokens"]["retain"]["rows_cut"] == 0
    assert said in (tmp_path / "out" / "README.md").read_text()


def test_long_text_can_be_split_into_rows(make_trainer, tiny_tokenizer):
    trainer = make_trainer(max_length=32, long_rows="split", train_dataset=Dataset.from_list(LONG))
    length = len(tokenize_row(LONG[0], tiny_tokenizer)["input_ids"])
    assert len(trainer.train_dataset) == -(-(length - 1) // 31) + 1
    assert trainer.answer_tokens["forget"].rows_cut == 0
    assert trainer.tokenization["max_length"] is None
    trainer.train()


def test_retain_rows_may_be_cut(make_trainer, retain_rows):
    trainer = make_trainer(max_length=64, retain_dataset=Dataset.from_list([*LONG[:1], {"text": "Bo is a baker."}]))
    assert trainer.answer_tokens["retain"].rows_cut == 1


def test_the_loss_of_the_router_counts(make_trainer):
    losses = {}
    for coef in (0.0, 1.0, 3.0):
        options = {"mask_config": None, "router_aux_loss_coef": coef, "max_steps": 1}
        trainer = make_trainer("grad_diff", model=build("mixtral", scale=0.1), **options)
        trainer.train()
        losses[coef] = trainer.state.log_history[0]["loss"]
    assert losses[1.0] > losses[0.0] + 0.5
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]), rel=1e-3)
