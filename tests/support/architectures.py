"""Models of several architectures, small and random, but with logits as large as those of trained ones."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

SMALL = dict(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=1,
)
FALCON = dict(
    vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=1
)
GPT2 = dict(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=1)
RIGHT = {
    "llama": SMALL,
    "gemma2": SMALL,  # a soft cap
    "gemma3_text": SMALL | {"final_logit_softcapping": 30.0},
    "gpt2": GPT2,
    "falcon": FALCON | {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "cohere": SMALL,  # a scale
    "granite": SMALL | {"logits_scaling": 8.0},
    "mixtral": SMALL | {"num_local_experts": 4, "output_router_logits": True},
}
WRONG = {
    "modernbert-decoder": SMALL,  # a dense layer and a norm before the head
    "recurrent_gemma": SMALL | {"lru_width": 32, "num_hidden_layers": 3, "attention_window_size": 16},  # a soft cap
    "llama4_text": SMALL  # the fused head raises
    | {"intermediate_size_mlp": 64, "num_local_experts": 2, "output_router_logits": True},
}


def build(kind: str, scale: float = 1.0, **options) -> torch.nn.Module:
    """A model with random biases and with logits about `scale` times those of a trained one; in training mode."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(RIGHT | WRONG)[kind] | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        head, peak = model.get_output_embeddings(), model.eval()(**batch()).logits.abs().max()
        head.weight.mul_(scale * 40 / peak)
    return model.train()


def batch(labels: bool = False) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 80, (3, 20), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    targets = ids.masked_fill(torch.arange(20) < 5, -100)
    targets[1, 12:] = -100
    return inputs | {"labels": targets} if labels else inputs


def build_multimodal(kind: str, vocab_size: int = 320) -> torch.nn.Module:
    """A model of images and text, `"gemma3"` or `"qwen2_5_vl"`; its files name weights otherwise than the model does."""
    text = SMALL | {"vocab_size": vocab_size}
    if kind == "gemma3":
        vision = dict(intermediate_size=64, num_attention_heads=4, image_size=28, patch_size=14)
        places = dict(mm_tokens_per_image=4, image_token_index=300, boi_token_index=301, eoi_token_index=302)
    else:
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        text |= {"rope_parameters": rope}
        vision = dict(depth=2, num_heads=4, out_hidden_size=32, patch_size=14, fullatt_block_indexes=[1])
        places = dict(image_token_id=300, video_token_id=303, vision_start_token_id=301, vision_end_token_id=302)
    vision |= dict(hidden_size=32, num_hidden_layers=2)
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(kind, text_config=text, vision_config=vision, **places)
    )
