"""A published model is judged by the LM Evaluation Harness, which knows nothing of this package."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard

from wagle_trl.hub.publish import publish

from ..support.deltas import unlearned

TASK = """
task: forget
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
target_delimiter: ""
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
"""
EVALUATE = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
results = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": "user/model", "dtype": "float32"}, device="cpu", batch_size=1,
    tasks=["forget"], task_manager=TaskManager(include_path=sys.argv[1]), bootstrap_iters=0,
)
assert not {"wagle_trl", "wagle_kernels"} & sys.modules.keys()
print(json.dumps(results["results"]["forget"]))
"""


def log_likelihood(model, tokenizer, row):
    """Of the answer, in nats, given the prompt."""
    prompt, text = tokenizer(row["prompt"]).input_ids, tokenizer(row["prompt"] + row["completion"]).input_ids
    with torch.no_grad():
        log_probs = model(torch.tensor([text])).logits[0].log_softmax(-1)
    return sum(float(log_probs[i - 1, text[i]]) for i in range(len(prompt), len(text)))


@pytest.mark.slow
def test_the_harness_finds_the_perplexity_of_the_unlearned_model(
    tiny_model, tiny_tokenizer, forget_rows, tmp_path, hub
):
    model, mask = unlearned(tiny_model())
    folder, tasks = tmp_path / "run", tmp_path / "tasks"
    for saved in (model, tiny_tokenizer):
        saved.save_pretrained(folder)
    mask.save(folder)
    publish(folder, "user/model", ModelCard("---\nlicense: mit\n---\n# Mine"))
    tasks.mkdir()
    forget_rows.to_json(tasks / "rows.jsonl")
    (tasks / "forget.yaml").write_text(TASK.format(rows=tasks / "rows.jsonl"))
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(tasks)],
        env=os.environ | hub.environment | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONSAFEPATH": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    mean = sum(log_likelihood(model, tiny_tokenizer, row) for row in forget_rows) / len(forget_rows)
    assert found["perplexity,none"] == pytest.approx(torch.tensor(-mean).double().exp().item(), rel=1e-4)
