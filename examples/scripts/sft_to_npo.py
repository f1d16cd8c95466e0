"""
The SFT script of TRL, turned into an unlearning script: the rows that it trained on are forgotten.

```bash
python examples/scripts/sft_to_npo.py \
    --model_name_or_path meta-llama/Llama-3.2-1B-Instruct \
    --dtype bfloat16 \
    --dataset_name data/forget \
    --retain_dataset data/retain \
    --mask_score wagle \
    --mask_density 0.05 \
    --stop_forget_probability 0.1 \
    --per_device_train_batch_size 4 \
    --output_dir Llama-3.2-1B-Instruct-unlearned
```

`data/forget` and `data/retain` are folders of JSON lines, or names of data sets on the Hub, in any format that
`SFTTrainer` takes. Learning rate, retain weight and length have defaults of their own, which are those of unlearning.
`--mask PATH` takes a saved mask instead of computing one. `--use_peft` unlearns in adapters.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from wagle_trl import MaskConfig, NPOConfig, NPOTrainer


@dataclass
class UnlearningScriptArguments(ScriptArguments):
    mask: str | None = field(default=None, metadata={"help": "Path of a saved mask. By default one is computed."})
    retain_dataset: str | None = field(default=None, metadata={"help": "Path or name of the rows to keep."})


def main(
    script_args: UnlearningScriptArguments,
    training_args: NPOConfig,
    model_args: ModelConfig,
    mask_config: MaskConfig,
) -> None:
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config)

    trainer = NPOTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        # The difference from TRL's script
        mask=script_args.mask,
        mask_config=mask_config if script_args.mask is None else None,
        retain_dataset=load_dataset(script_args.retain_dataset, split=script_args.dataset_train_split),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    parser = TrlParser((UnlearningScriptArguments, NPOConfig, ModelConfig, MaskConfig))
    main(*parser.parse_args_and_config())
