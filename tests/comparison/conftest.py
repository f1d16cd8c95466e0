import json

import pytest
import torch

from wagle_trl.comparison.runs import load_runs
from wagle_trl.masks.mask import WeightMask

SHAPES = {f"model.layers.{i}.mlp.up_proj.weight": (8, 9) for i in range(3)}
# Forget and retain probability come down together, so that what is kept at a level can be told by head
TRAINING = {
    "objective": "NPO",
    "base_model": "/models/my/base",
    "options": {"learning_rate": 2e-5},
    "mask": {
        "num_selected": 10,
        "numel": 200,
        "density": 0.0499999,
        "density_by_layer": {"0": 0.0499999},
        "info": {"score": "fisher_ratio"},
    },
    "log_history": [
        {"forget_probability": 0.9, "retain_probability": 1.0, "unseen_retain_probability": 0.95, "step": 0},
        {"loss": 1.5, "step": 10},
        {"forget_probability": 0.1, "retain_probability": 0.8, "unseen_retain_probability": 0.55, "step": 10},
        {"train_runtime": 3.0, "step": 10},
    ],
    "cost": {"peak_memory_bytes": {"attribution": 1_234_000_000, "training": 2_500_000_000}},
}
EVALUATION = {
    "model": "out/npo",
    "base_model": "/models/my/base",
    "options": {"batch_size": 16, "mia_k": 0.4, "generate": True, "relearn_steps": 20},
    "forget_prob": 0.1234567,
    "retain_prob": 0.9,
    "forget_rougeL_recall": 0.25,
    "model_utility": 0.6,
    "forget_quality": 1.2345e-12,
    "privleak": -45.678,
    "kl_to_base_unseen_retain": 0.0123,
    "weights_changed": 0.0401,
    "weights_changed_by_layer": {"-": 0.0, "0": 0.05},
    "attacks": {
        "relearn": {
            "forget_prob": 0.51,
            "rows": {"forget": 5},
            "curve": [{"step": 0, "forget_probability": 0.12}, {"step": 20, "forget_probability": 0.51}],
            "relearned_rows": [2],
        },
        "quantize_int8": {
            "forget_prob": 0.14,
            "retain_prob": 0.87,
            "rows": {"forget": 6, "retain": 10},
            "rounding": "nearest",
        },
    },
}


@pytest.fixture
def make_run(tmp_path):
    """Writes the folder of a run and returns its path; `None` leaves a file out."""

    def make(name="run", training=TRAINING, evaluation=None, mask=False):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file, content in (("wagle_report.json", training), ("wagle_eval.json", evaluation)):
            if content is not None:
                (folder / file).write_text(json.dumps(content))
        if mask:
            generator = torch.Generator().manual_seed(0)
            WeightMask.from_dense({n: torch.rand(s, generator=generator) < 0.3 for n, s in SHAPES.items()}).save(
                folder
            )
        return str(folder)

    return make


@pytest.fixture
def runs(make_run):
    """A run with everything, one that was only trained, without a mask, and a model that was only evaluated."""
    dense = TRAINING | {"mask": None, "log_history": TRAINING["log_history"][:1]}
    only_evaluated = {"model": "base", "forget_prob": 0.99, "retain_prob": 0.98}
    return load_runs(
        [
            make_run("masked", evaluation=EVALUATION, mask=True),
            make_run("dense", training=dense),
            make_run("base", training=None, evaluation=only_evaluated),
        ]
    )


@pytest.fixture
def seeds(make_run):
    """Folders of runs of three seeds, each with its own base model and with more or less of the unseen rows kept."""

    def make(arm="npo", evaluation=EVALUATION, has_mask=False, options=(), **training):
        folders = []
        for seed, kept in ((1, 0.45), (2, 0.55), (3, 0.65)):
            last = TRAINING["log_history"][2] | {"unseen_retain_probability": kept}
            content = TRAINING | {
                "base_model": f"/models/seed-{seed}/base",
                "options": {"learning_rate": 2e-5, "retain_weight": 5.0, "seed": seed, **dict(options)},
                "data": {"forget": {"rows": 18, "source": "forget"}, "retain": {"rows": 100, "source": "retain"}},
                "log_history": [TRAINING["log_history"][0], last],
                **training,
            }
            evaluated = evaluation and evaluation | {"forget_prob": 0.1 * seed}
            folders.append(make_run(f"seed-{seed}/{arm}", content, evaluated, has_mask))
        return folders

    return make
