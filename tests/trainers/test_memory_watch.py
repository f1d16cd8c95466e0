"""Predicted against measured memory, and what a run says when there is not enough."""

import json
from types import SimpleNamespace

import pytest
import torch

from wagle_trl import MaskConfig
from wagle_trl.optim.compact_state import Arena
from wagle_trl.trainers.memory_watch import longest_row, peak_memory_bytes

from ..support.large_trainers import BF16, FP32, measured

CASES = {
    "8-bit, sparse": dict(mask=("fisher_ratio", 0.05), optim="adamw_8bit"),
    "32-bit, sparse": dict(mask=("fisher_ratio", 0.05)),
    "8-bit, dense coding": dict(mask=("fisher_ratio", 0.5), optim="adamw_8bit"),
    "32-bit, dense coding, accumulation": dict(mask=("wagle", 0.5), gradient_accumulation_steps=2),
    "bf16 accumulators": dict(
        mask=("gradient", 0.5), optim="adamw_8bit", gradient_accumulation_steps=2, accumulator_dtype="bfloat16"
    ),
    "almost all, 8-bit": dict(mask=("gradient", 0.95), optim="adamw_8bit", gradient_accumulation_steps=2),
    "fp32": dict(mask=("wagle", 0.05), dtype=FP32, gradient_accumulation_steps=2),
    "fp32, half": dict(mask=("ratio", 0.5), dtype=FP32, optim="adamw_8bit"),
    "1 sweep": dict(mask=("gradient", 0.05), sweeps=1),
    "3 sweeps": dict(mask=("fisher_ratio", 0.05), sweeps=3, optim="adamw_8bit"),
    "5 sweeps, fp32": dict(mask=("wagle", 0.1), sweeps=5, dtype=FP32),
    "12 sweeps": dict(mask=("wagle", 0.05), sweeps=12),
    "no checkpointing, large batch": dict(
        mask=("wagle", 0.1), gradient_checkpointing=False, per_device_train_batch_size=4, length=96
    ),
    "all weights": dict(mask=("wagle", 0.05), scope=["*"], optim="adamw_8bit"),
    "autocast": dict(mask=("wagle", 0.1), dtype=FP32, bf16=True, use_cpu=True),
    "GradDiff": dict(kind="grad_diff", mask=("fisher_ratio", 0.1), length=128),
    "fine-tuning": dict(kind="masked_sft", mask=("fisher_ratio", 0.1), per_device_train_batch_size=4),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_peaks_are_as_predicted(case, make_large, record_property):
    case = dict(case)
    score, density = case.pop("mask")
    memory = {"attribution_memory": "sweeps", "attribution_sweeps": case.pop("sweeps")} if "sweeps" in case else {}
    config = MaskConfig(score, density, mask_scope=case.pop("scope", None), **memory)
    trainer = make_large(mask_config=config, **case)
    plan = trainer.memory.make_plan()
    attribution = measured(trainer, trainer.compute_mask)
    training = measured(trainer, trainer.train, *trainer.mask.bits.values())
    record_property("bytes", {"attribution": attribution, "training": training, "plan": plan.to_dict()})
    assert plan.attribution_peak_bytes == pytest.approx(attribution, rel=0.05)
    assert plan.training_peak_bytes == pytest.approx(training, rel=0.05)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_dense_training_is_predicted_too(dtype, accumulation, make_large):
    options = dict(gradient_accumulation_steps=accumulation, per_device_train_batch_size=4)
    trainer = make_large(dtype=dtype, count=8, **options)
    plan = trainer.memory.make_plan()
    assert plan.attribution_peak_bytes is None
    assert plan.training_peak_bytes == pytest.approx(measured(trainer, trainer.train), rel=0.05)


def test_a_ready_mask_is_counted_as_it_is(make_large):
    first = make_large(mask_config=MaskConfig("random", 0.3, mask_scope=["*.mlp.*"]))
    trainer = make_large(mask=first.compute_mask(), optim="adamw_8bit")
    plan = trainer.memory.make_plan()
    assert plan.attribution is None
    held = trainer.mask.bits.values()
    assert plan.training_peak_bytes == pytest.approx(measured(trainer, trainer.train, *held), rel=0.05)


def test_attribution_reads_the_forget_rows_of_fine_tuning(make_trainer, forget_rows, small_mask):
    long_rows = forget_rows.map(lambda row: {"completion": 20 * row["completion"]})
    setups = [
        make_trainer("masked_sft", forget_dataset=rows, mask_config=small_mask).memory._setup()
        for rows in (forget_rows, long_rows)
    ]
    assert setups[0].max_length == setups[1].max_length
    assert setups[1].attribution_length > 2 * setups[0].attribution_length


# What the user sees


@pytest.fixture
def spoken(make_trainer, capsys):
    """`spoken(**options)`: what a run that shows progress prints."""

    def run(**options):
        trainer = make_trainer(disable_tqdm=False, **options)
        trainer.train()
        return trainer, capsys.readouterr().out

    return run


def test_a_run_prints_its_plan_first_and_its_peak_after(spoken):
    trainer, out = spoken(mask_config=MaskConfig(mask_density=0.5))
    assert "predicted peak, GB" in out and "attribution memory: resident" in out
    assert out.index("predicted peak") < out.index("  loss ") < out.index("Peak memory of training")
    assert "Peak memory of attribution" in out
    assert trainer.memory.plan.fits is True


def test_the_plan_and_the_peaks_are_in_the_report(spoken, tmp_path):
    trainer, _ = spoken(mask_config=MaskConfig(mask_density=0.5))
    trainer.save_model()
    cost = json.loads((tmp_path / "out" / "wagle_report.json").read_text())["cost"]
    assert cost["memory_plan"] == trainer.memory.plan.to_dict()
    assert cost["peak_memory_bytes"] == trainer.memory.measured


def test_a_silent_run_prints_nothing(make_trainer, small_mask, capsys):
    make_trainer(mask_config=small_mask).train()
    assert "eak" not in capsys.readouterr().out


def test_adapters_are_planned_too(spoken):
    from peft import LoraConfig

    trainer, out = spoken(peft_config=LoraConfig(target_modules=["q_proj"]))
    assert "predicted peak" in out
    assert 0 < trainer.memory.plan.training["moments"] < 2 * trainer.memory.plan.training["weights"]


def test_a_model_that_cannot_be_simulated_trains_without_a_plan(make_trainer, small_mask, monkeypatch, capsys):
    from wagle_trl.memory.simulation import Simulation

    def fails(*args):
        raise RuntimeError("this model looks at values")

    monkeypatch.setattr(Simulation, "run", fails)
    trainer = make_trainer(mask_config=small_mask, disable_tqdm=False)
    trainer.train()
    assert trainer.memory.plan is None
    assert "predicted" not in capsys.readouterr().out


@pytest.mark.parametrize("place", ["attribution", "training"])
def test_out_of_memory_names_the_cheapest_change(place, make_trainer, monkeypatch):
    trainer = make_trainer(mask_config=MaskConfig(mask_density=0.5), gradient_accumulation_steps=2)

    def too_little():
        plan = trainer.memory.make_plan()
        return max(plan.training_peak_bytes, plan.attribution_peak_bytes or 0) - 1

    monkeypatch.setattr(trainer.memory, "capacity", too_little)

    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    target = "wagle_trl.trainers.mask_mixin.compute_mask" if place == "attribution" else "trl.SFTTrainer.train"
    monkeypatch.setattr(target, fails)
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. By plan .* makes it fit: \w+=") as caught:
        trainer.train()
    assert str(caught.value).count("By plan") == 1


def test_out_of_memory_although_it_should_fit_says_so(make_trainer, small_mask, monkeypatch):
    trainer = make_trainer(mask_config=small_mask)

    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("trl.SFTTrainer.train", fails)
    with pytest.raises(torch.OutOfMemoryError, match=r"it should fit, .* to take less, set dtype='bfloat16'\."):
        trainer.train()
    trainer = make_trainer(model=trainer.model.bfloat16(), mask_config=small_mask)
    with pytest.raises(torch.OutOfMemoryError, match=r"to take less, set gradient_checkpointing=True\."):
        trainer.train()


def test_the_longest_row_counts(make_trainer, small_mask):
    trainer = make_trainer(mask_config=small_mask)
    lengths = [len(ids) for data in (trainer.train_dataset, trainer.retain_dataset) for ids in data["input_ids"]]
    assert longest_row(trainer.train_dataset, None, trainer.retain_dataset) == max(lengths)
    assert trainer.memory._setup().max_length == max(lengths)


def test_peak_memory_is_in_bytes():
    assert 10 * 2**20 < peak_memory_bytes(torch.device("cpu")) < 2**43


# Options that save memory leave the result as it is


@pytest.fixture
def curve(make_large):
    """`curve(**options)`: losses of four steps, and the mask."""

    def losses(**options):
        options = dict(mask_config=MaskConfig("fisher_ratio", 0.2), max_steps=4, learning_rate=1e-4) | options
        trainer = make_large(**options)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.mask

    return losses


@pytest.fixture(scope="module")
def known():
    """Curves by options, of runs that several tests compare theirs with: nobody may change them."""
    return {}


@pytest.fixture
def usual(curve, known):
    """`usual(**options)`: as `curve`, of the same run for all tests."""

    def losses(**options):
        if repr(options) not in known:
            known[repr(options)] = curve(**options)
        return known[repr(options)]

    return losses


@pytest.mark.parametrize(
    "option",
    [
        {"gradient_checkpointing": False},
        {"mask_config": MaskConfig("fisher_ratio", 0.2, attribution_memory="offload")},
        {"mask_config": MaskConfig("fisher_ratio", 0.2, attribution_memory="host")},
        {"mask_config": MaskConfig("fisher_ratio", 0.2, attribution_memory="sweeps", attribution_sweeps=4)},
    ],
    ids=["checkpointing", "offload", "host", "sweeps"],
)
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_exact_options_change_no_bit_of_the_loss(option, dtype, curve, usual):
    assert curve(dtype=dtype, **option) == usual(dtype=dtype)


@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        ({"optim": "adamw_8bit"}, 5e-3),  # moments of 8 bits
        ({"dtype": BF16}, 2.5e-2),  # the forward pass sees weights and activations of 8 significant bits
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 1e-4),  # order of sums
        pytest.param({"compile_layers": True}, 1e-4, marks=pytest.mark.slow),  # order of sums
    ],
    ids=["8-bit state", "bf16 weights", "accumulation", "compiled layers"],
)
def test_other_options_change_the_loss_by_their_rounding(option, tolerance, curve, usual):
    common = dict(kind="masked_sft", dtype=FP32, mask_config=MaskConfig("random", 0.2), learning_rate=5e-3)
    common |= dict(per_device_train_batch_size=8)  # all rows in every step, so that the loss falls
    expected, mask = usual(**common)
    actual, other = curve(**common | option)
    assert other == mask
    assert expected[-1] < 0.5 * expected[0]
    assert actual == pytest.approx(expected, rel=tolerance)
    assert actual != expected or tolerance == 1e-4  # sums in another order may come to the same


def test_gradients_that_are_not_added_up_need_no_fp32(curve, usual, monkeypatch):
    def allocate(*args, **kwargs):
        arena = Arena.allocate(*args, **kwargs)
        arena.accumulate_in_fp32()
        return arena

    bf16 = usual(dtype=BF16)
    monkeypatch.setattr("wagle_trl.optim.compact_state.Arena", SimpleNamespace(allocate=allocate))
    assert curve(dtype=BF16) == bf16
