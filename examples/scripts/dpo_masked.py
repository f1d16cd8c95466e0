"""
The DPO script of TRL with a mask: preferences train the weights that a mask selects, all others stay bit-identical.

```bash
python examples/scripts/dpo_masked.py \
    --model_name_or_path meta-llama/Llama-3.2-1B-Instruct \
    --dtype bfloat16 \
    --dataset_name trl-lib/ultrafeedback_binarized \
    --forget_dataset data/answers \
    --mask_score gradient \
    --mask_density 0.05 \
    --learning_rate 2e-6 \
    --num_train_epochs 1 \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 8 \
    --output_dir Llama-3.2-1B-Instruct-DPO
```

`--forget_dataset` are rows with answers: the mask takes the weights that hold them. `--retain_dataset` are rows
to spare, for scores that compare two sets, such as `wagle`. `--mask_score random` and `--mask_score magnitude` need
neither. `--mask PATH` takes a saved mask instead of computing one.
"""

from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from wagle_trl import MaskConfig, MaskedDPOConfig, MaskedDPOTrainer


@dataclass
class MaskScriptArguments(ScriptArguments):
    mask: str | None = field(default=None, metadata={"help": "Path of a saved mask. By default one is computed."})
    forget_dataset: str | None = field(
        default=None, metadata={"help": "Path or name of the rows whose weights the mask takes."}
    )
    retain_dataset: str | None = field(
        default=None, metadata={"help": "Path or name of the rows whose weights the mask spares."}
    )


def load_rows(name: str | None, split: str) -> Dataset | None:
    return None if name is None else load_dataset(name, split=split)


def main(
    script_args: MaskScriptArguments,
    training_args: MaskedDPOConfig,
    model_args: ModelConfig,
    mask_config: MaskConfig,
) -> None:
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config)

    trainer = MaskedDPOTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        # The difference from TRL's script
        mask=script_args.mask,
        mask_config=mask_config if script_args.mask is None else None,
        forget_dataset=load_rows(script_args.forget_dataset, script_args.dataset_train_split),
        retain_dataset=load_rows(script_args.retain_dataset, script_args.dataset_train_split),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    parser = TrlParser((MaskScriptArguments, MaskedDPOConfig, ModelConfig, MaskConfig))
    main(*parser.parse_args_and_config())
