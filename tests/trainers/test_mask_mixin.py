"""A mask on every kind of trainer: what moves, what is clipped and logged, what is freed, saved and resumed."""

import inspect
import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, KTOConfig, RewardConfig, SFTConfig

from wagle_trl import (
    MaskConfig,
    MaskedDPOConfig,
    MaskedDPOTrainer,
    MaskedGRPOTrainer,
    MaskedKTOTrainer,
    MaskedRewardTrainer,
    MaskedSFTTrainer,
    MaskedTrainer,
    MaskMixin,
    WeightMask,
)
from wagle_trl.cli.main import main
from wagle_trl.data.tokenization import tokenize_row

SAVING = dict(save_strategy="steps", save_steps=2)
KINDS = {
    "plain": (MaskedTrainer, TrainingArguments, {}),
    "sft": (MaskedSFTTrainer, SFTConfig, {}),
    "dpo": (MaskedDPOTrainer, DPOConfig, {}),
    "kto": (MaskedKTOTrainer, KTOConfig, {}),
    "reward": (MaskedRewardTrainer, RewardConfig, {}),
    "grpo": (MaskedGRPOTrainer, GRPOConfig, dict(num_generations=2, max_completion_length=4)),
}


def lengths(completions, **_) -> list[float]:
    """A reward for GRPO."""
    return [float(len(completion)) for completion in completions]


def rows_of(kind: str, rows: Dataset, tokenizer) -> Dataset:
    """Rows as a kind of trainer takes them, made of prompts and completions."""
    rejected = [*rows["completion"][1:], rows["completion"][0]]
    match kind:
        case "plain":
            return rows.map(tokenize_row, fn_kwargs={"tokenizer": tokenizer}, remove_columns=rows.column_names)
        case "dpo":
            return rows.rename_column("completion", "chosen").add_column("rejected", rejected)
        case "kto":
            return rows.add_column("label", [i % 2 == 0 for i in range(len(rows))])
        case "reward":
            return Dataset.from_dict({"chosen": rows["completion"], "rejected": rejected})
        case "grpo":
            return rows.remove_columns("completion")
    return rows


def load(folder: str):
    """The model in a folder, in the dtype that it is saved in."""
    loads = LlamaForSequenceClassification if "reward" in folder else LlamaForCausalLM
    return loads.from_pretrained(folder, dtype="auto")


@pytest.fixture
def base(tmp_path, tiny_model):
    """Factory of folders with a model: some trainers load it twice."""

    def save(kind: str, dtype: torch.dtype = torch.float32) -> str:
        folder = tmp_path / "models" / f"{kind}-{dtype}"
        if not folder.exists():
            model = tiny_model(dtype=dtype)
            if kind == "reward":
                torch.manual_seed(0)
                model.config.num_labels = 1
                classifier = LlamaForSequenceClassification(model.config).to(dtype)
                classifier.model.load_state_dict(model.model.state_dict())
                model = classifier
            model.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def make(base, tiny_tokenizer, forget_rows, tmp_path):
    """Factory `make(kind, <arguments of the trainer>, **options)` of a trainer of four steps."""

    def build(kind: str, dtype: torch.dtype = torch.float32, model=None, **options):
        trainer_class, config_class, own = KINDS[kind]
        given = (
            "mask",
            "mask_config",
            "forget_dataset",
            "retain_dataset",
            "callbacks",
            "config_class",
            "train_dataset",
        )
        arguments = {name: options.pop(name) for name in given if name in options}
        defaults = dict(
            output_dir=str(tmp_path / "out"),
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            weight_decay=0.5,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            seed=3,
        )
        config = arguments.pop("config_class", config_class)(**defaults | own | options)
        if model is None:
            model = load(base(kind, dtype))
        arguments.setdefault("train_dataset", rows_of(kind, forget_rows, tiny_tokenizer))
        if kind == "grpo":
            arguments["reward_funcs"] = lengths
        if kind == "plain":
            arguments["data_collator"] = DataCollatorForSeq2Seq(tiny_tokenizer)
        return trainer_class(model=model, args=config, processing_class=tiny_tokenizer, **arguments)

    return build


def a_mask(model, density: float = 0.2) -> WeightMask:
    """Some of the weights of blocks and embeddings."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in model.named_parameters() if ".layers.0." not in name and p.dim() == 2}
    return WeightMask.from_dense(
        {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}
    )


class Watcher(TrainerCallback):
    """The norm of the selected part of the whole gradient, and whether whole gradients are there at a step."""

    def __init__(self):
        self.norms, self.left = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.left.append(sum(parameter.grad is not None for parameter in model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_selected_weights_move(kind, dtype, make, base, snapshot, assert_only_selected_moved):
    watcher = Watcher()
    trainer = make(kind, dtype, mask=a_mask(load(base(kind, dtype))), callbacks=[watcher])
    before = snapshot(trainer.model)
    trainer.train()
    moved = assert_only_selected_moved(before, trainer.model, trainer.mask)
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry][-1]
    assert moved == pytest.approx(log["selected_moved"]) and moved > 0.2
    assert watcher.left == [0] * 4  # hooks took them


@pytest.mark.parametrize("kind", ["plain", "dpo", "kto", "reward"])
def test_the_norm_is_that_of_the_selected_gradients_and_clips_by_it(kind, make, snapshot):
    """A step whose whole gradient is known: the same trainer without a mask, which does not step."""
    dense = make(kind, max_steps=1, learning_rate=0.0, max_grad_norm=0.0)
    mask, gradients = a_mask(dense.model), {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    dense.add_callback(Keep())
    dense.train()
    selected = sum(gradients[name][mask.dense(name)].square().sum() for name in mask.bits).sqrt().item()
    whole = sum(gradient.square().sum() for gradient in gradients.values()).sqrt().item()
    masked = make(kind, max_steps=1, mask=mask, max_grad_norm=selected / 2, optim="adamw_torch")
    masked.train()
    logged = next(entry for entry in masked.state.log_history if "grad_norm" in entry)["grad_norm"]
    assert logged == pytest.approx(selected, rel=1e-4)
    assert whole > 1.5 * selected
    # Half of the norm is clipped away, as the first moments say
    groups = masked._masked_optimizer.state_dict()["state"].values()
    moments = torch.cat([state["exp_avg"].flatten() for state in groups]).norm().item()
    assert moments == pytest.approx(0.1 * selected / 2, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_at_the_same_weights(kind, make, base, tmp_path):
    mask = a_mask(load(base(kind)))
    whole = make(kind, mask=mask, output_dir=str(tmp_path / "whole"), **SAVING)
    whole.train()
    resumed = make(kind, mask=mask, output_dir=str(tmp_path / "whole"), **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in resumed.model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_mask_report_and_card_are_saved_and_the_files_are_verified(kind, make, base, tmp_path):
    trainer = make(kind, mask=a_mask(load(base(kind))), **SAVING)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    out = tmp_path / "out"
    for folder in (out, out / "checkpoint-2", out / "checkpoint-4"):
        assert WeightMask.load(folder) == trainer.mask
        report = json.loads((folder / "wagle_report.json").read_text())
        assert report["objective"] == trainer._name and report["data"]["train"]["rows"] == 6
        assert trainer._name in (folder / "README.md").read_text()
        assert (folder / "wagle_manifest.json").exists()
    assert report["options"]["learning_rate"] == 1e-2
    assert main(["verify", base(kind), str(out)]) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", ["wagle", "fisher_ratio"])
def test_a_mask_is_computed_from_rows_to_forget_and_to_retain(kind, score, make, forget_rows, retain_rows):
    rows = {"forget_dataset": forget_rows, "retain_dataset": retain_rows}
    if kind == "reward":
        rows = {name: rows_of("reward", dataset, None) for name, dataset in rows.items()}
    trainer = make(kind, max_steps=1, mask_config=MaskConfig(score, 0.1), **rows)
    trainer.train()
    assert trainer.mask.density == pytest.approx(0.1, abs=1e-3) and trainer.mask.info.score == score
    assert {"train", "forget", "retain"} == set(trainer.run_inputs.rows)


def test_without_rows_to_forget_a_trainer_of_others_says_what_to_pass(make, retain_rows):
    with pytest.raises(ValueError, match=r"mask_score .snip. needs rows with answers.*pass `forget_dataset`"):
        make("grpo", mask_config=MaskConfig("snip"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_a_score_of_the_weights_alone_needs_no_rows_to_forget(kind, score, make):
    mask = make(kind, mask_config=MaskConfig(score, 0.1)).compute_mask()
    assert mask.density == pytest.approx(0.1, abs=1e-3) and mask.info.score == score


def test_the_memory_of_a_plain_trainer_is_predicted(make, base, capsys):
    trainer = make("plain", mask=a_mask(load(base("plain"))), disable_tqdm=False)
    trainer.train()
    assert "predicted peak, GB" in capsys.readouterr().out
    assert trainer.memory.plan.training_peak_bytes > sum(p.numel() * 4 for p in trainer.model.parameters())


def test_options_of_the_mask_come_from_the_config_or_have_defaults(make, base, tmp_path):
    mask = a_mask(load(base("dpo")))
    assert not make("dpo", mask=mask).mask_options.save_delta
    trainer = make("dpo", mask=mask, config_class=MaskedDPOConfig, save_delta=True, accumulator_dtype="bfloat16")
    trainer.train()
    trainer.save_model()
    assert trainer.args.accumulator_dtype == "bfloat16" and (tmp_path / "out" / "wagle_delta.safetensors").exists()


def test_without_a_mask_it_is_the_base_trainer(make, base, tmp_path, tiny_tokenizer, forget_rows):
    ours = make("dpo")
    ours.train()
    theirs = DPOTrainer(
        model=LlamaForCausalLM.from_pretrained(base("dpo"), dtype=torch.float32),
        args=ours.args,
        processing_class=tiny_tokenizer,
        train_dataset=rows_of("dpo", forget_rows, tiny_tokenizer),
    )
    theirs.train()
    expected = dict(theirs.model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in ours.model.named_parameters())


def test_any_trainer_of_ones_own_takes_a_mask(make, base, tmp_path, tiny_tokenizer, forget_rows, snapshot):
    class Halved(Trainer):
        def __init__(self, model, args, train_dataset, half: float = 0.5):
            super().__init__(model, args, train_dataset=train_dataset)
            self.half = half

        def compute_loss(self, *args, **kwargs):
            return self.half * super().compute_loss(*args, **kwargs)

    class MaskedHalved(MaskMixin, Halved):
        pass

    assert list(inspect.signature(MaskedHalved).parameters) == [
        "model", "args", "train_dataset", "half", "mask_config", "mask", "forget_dataset", "retain_dataset",
    ]  # fmt: skip
    model = LlamaForCausalLM.from_pretrained(base("plain"))
    rows = rows_of("plain", forget_rows, tiny_tokenizer)
    args = TrainingArguments(str(tmp_path / "own"), per_device_train_batch_size=1, max_steps=2, report_to="none")
    trainer = MaskedHalved(model, args, rows, half=0.25, mask=a_mask(model))
    before = snapshot(model)
    trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if ".layers.0." in name)
    trainer.save_model()
    assert load_file(tmp_path / "own" / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_signatures_show_the_arguments_of_both_bases(kind):
    trainer_class = KINDS[kind][0]
    base = next(
        parent for parent in trainer_class.__mro__ if not issubclass(parent, MaskMixin) and "__init__" in vars(parent)
    )
    parameters = inspect.signature(trainer_class).parameters
    of_base = [name for name in inspect.signature(base).parameters if name != "kwargs"]
    assert list(parameters)[: len(of_base)] == of_base
    own = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert own == {"mask", "mask_config", "forget_dataset", "retain_dataset"}
