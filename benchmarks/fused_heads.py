"""TRL's fused LM head beside the model's own logits, for every class of causal language models that transformers has.

python -m benchmarks fused_heads

Each class is built small from its own config with random weights, so large that soft caps, scales and biases show. `error` is
by how many nats per token the fused head differs from the model's own logits; `verdict` what the check of the trainers makes
of it: `right` (used, and equal), `fallen back` (not used, and not equal), `needless` (not used, though equal) or `wrong`.
"""

import argparse
import copy
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from trl.trainer.utils import add_fused_lm_head

from benchmarks.environment import environment, write_result
from wagle_trl.losses.fused_head import check_fused_head

RESULT = Path(__file__).parent / "results" / "fused_heads.json"
LARGEST = 30_000_000  # weights of a model that counts as small
EQUAL = 1e-3  # nats per token
LARGEST_LOGIT = 25.0  # as of a trained model

# Size -> what configs call the fields that are made so small
WIDTHS = {
    64: "hidden_size d_model n_embd dim emb_dim embedding_size embedding_dim word_embed_proj_dim attention_hidden_size lru_width "
    "output_embedding_size input_embedding_size",
    128: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim d_inner n_inner moe_intermediate_size dff dim_ff "
    "shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size expert_ffn_hidden_size intermediate_size_mlp "
    "dense_intermediate_size feed_forward_size mamba_d_ssm",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads",
    2: "num_key_value_heads num_kv_heads",
    16: "head_dim kv_channels kv_lora_rank q_lora_rank v_head_dim rotary_dim attention_head_dim d_head",
}
COUNTS = {
    320: "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size",
    256: "max_position_embeddings n_positions",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_experts_per_tok num_experts_per_token moe_topk moe_k",
    4: "num_experts num_local_experts n_routed_experts moe_num_experts",
    1: "pad_token_id bos_token_id eos_token_id decoder_start_token_id",
}
# First everything small; where sizes do not go together so, fewer of them
_BOTH = {size: f"{WIDTHS.get(size, '')} {COUNTS.get(size, '')}" for size in WIDTHS | COUNTS}
_HEADS = "num_key_value_heads num_kv_heads"
_EXPERTS = "num_experts num_local_experts n_routed_experts moe_num_experts"
LADDER = (
    _BOTH,
    {size: names.replace(_HEADS, "") for size, names in _BOTH.items() if size != 16} | {4: f"{_BOTH[4]} {_HEADS}"},
    {size: names for size, names in _BOTH.items() if size != 16},
    COUNTS,
    {size: names.replace(_EXPERTS, "") for size, names in COUNTS.items()},
    {320: COUNTS[320], 256: COUNTS[256], 4: COUNTS[2].split("num_experts")[0]},
)


def small_config(model_class: type[PreTrainedModel], sizes: dict[int, str]) -> PretrainedConfig:
    """Default config with the fields that `sizes` names made small, in parts of it as well."""
    fields = {name: size for size, names in sizes.items() for name in names.split()}

    def changes(config: PretrainedConfig) -> dict[str, Any]:
        given = config.to_dict()
        parts = {name: getattr(config, name, None) for name in config.sub_configs}
        parts = {name: changes(part) for name, part in parts.items() if isinstance(part, PretrainedConfig)}
        filled = {
            name for name, value in given.items() if isinstance(value, int) or (value is None and "head" in name)
        }
        return {name: fields[name] for name in fields if name in filled} | parts

    config_class = model_class.config_class
    assert config_class is not None  # of classes that are not abstract
    return config_class(**changes(config_class()))


def build(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters())
    if count > LARGEST:
        raise ValueError(f"{count:,} weights")
    torch.manual_seed(0)
    return model_class(config).eval()


def rows() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 80, (2, 24), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


@torch.no_grad()
def enlarge(model: PreTrainedModel) -> None:
    """Random biases, and a head so large that logits are those of a trained model."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    peak = model(**rows()).logits.abs().max()
    factor = (LARGEST_LOGIT / peak).clamp(1, 1000)
    for parameter in list(model.get_output_embeddings().parameters())[:1]:  # pyright: ignore[reportOptionalMemberAccess]
        parameter.mul_(factor)


@torch.no_grad()
def error(model: PreTrainedModel) -> float | str:
    """Most nats by which the log-probability of a token differs from that of the model's own logits."""
    batch = rows()
    log_probs = model(**batch).logits[:, :-1].float().log_softmax(-1)
    try:
        fused = model(**batch, labels=batch["input_ids"], fused_lm_head=True).log_probs
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"[:200]
    return float((fused - log_probs.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]).abs().max())


@torch.no_grad()
def examine(model_class: type[PreTrainedModel]) -> dict[str, Any]:
    """What the fused head makes of a class, and what the check makes of the fused head in several states of the model."""
    problem = ""
    for sizes in LADDER:
        try:
            model = build(small_config(model_class, sizes), model_class)
            model(**rows())
            break
        except Exception as raised:
            problem = problem or f"{type(raised).__name__}: {raised}"[:200].replace("\n", " ")
    else:
        return {"class": model_class.__name__, "verdict": "not built", "reason": problem}
    fresh = copy.deepcopy(model)
    enlarge(model)
    half = copy.deepcopy(model).bfloat16()
    row: dict[str, Any] = {"class": model_class.__name__}
    for state, candidate in {"fp32": model, "bf16": half, "as initialised": fresh}.items():
        add_fused_lm_head(candidate, outputs=("log_probs", "entropy", "is_top1"))
        if state == "fp32":
            row["error"] = error(candidate)
        try:
            row[state] = "fused" if check_fused_head(candidate) else "own logits"
        except RuntimeError:  # some mix dtypes, and run in bf16 under autocast alone
            row[state] = "does not run"
        if state == "fp32":
            row["error after"] = error(candidate)
    equal = isinstance(row["error"], float) and row["error"] < EQUAL
    states = {row[state] for state in ("fp32", "bf16", "as initialised")} - {"does not run"}
    if isinstance(row["error after"], str) or row["error after"] > EQUAL or (not equal and "fused" in states):
        row["verdict"] = "wrong"
    elif equal:
        row["verdict"] = "right" if states == {"fused"} else "needless"
    else:
        row["verdict"] = "fallen back"
    return row


def cost_of_check() -> dict[str, Any]:
    """Milliseconds of the check of a Llama of 61 M weights, beside a training step's forward and backward pass."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = LlamaForCausalLM(config)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    times = []
    for _ in range(11):
        start = time.perf_counter()
        assert check_fused_head(model)
        times.append(1000 * (time.perf_counter() - start))
    ids = torch.randint(3, 32000, (8, 128), device=device)
    steps = []
    for _ in range(3):
        start = time.perf_counter()
        float(model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True).loss)
        model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True).loss.backward()
        steps.append(1000 * (time.perf_counter() - start))
    return {
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "check_ms": statistics.median(times),
        "first_check_ms": times[0],
        "step_ms": statistics.median(steps),
    }


def show(results: list[dict[str, Any]]) -> None:
    table = Table("class", "error", "fp32", "bf16", "as initialised", "verdict", title="TRL's fused LM head")
    for row in sorted(results, key=lambda row: (row["verdict"], row["class"])):
        size = row.get("error", row.get("reason", ""))
        table.add_row(
            row["class"],
            f"{size:.2g}" if isinstance(size, float) else size[:60],
            *(row.get(state, "") for state in ("fp32", "bf16", "as initialised")),
            row["verdict"],
        )
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks fused_heads", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", nargs="+", help="Names of classes.")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    results = []
    if args.output.exists():  # a run of this commit that was cut off goes on
        found = json.loads(args.output.read_text(encoding="utf-8"))
        results = found["classes"] if found["environment"]["commit"] == environment()["commit"] else []
    done = {row["class"] for row in results}
    classes: list[Any] = list(MODEL_FOR_CAUSAL_LM_MAPPING.values())
    for model_class in classes:
        if model_class.__name__ not in done and (args.only is None or model_class.__name__ in args.only):
            results.append(examine(model_class))
            done.add(model_class.__name__)
            gc.collect()
            write_result(args.output, {"classes": results})
    counts = {row["verdict"]: 0 for row in results}
    for row in results:
        counts[row["verdict"]] += 1
    show(results)
    write_result(args.output, {"verdicts": counts, "cost": cost_of_check(), "classes": results})


if __name__ == "__main__":
    main()
