"""Statistics against a plain loop of autograd over single rows; masks against the formulas on whole tensors."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from wagle_kernels import FORMULAS
from wagle_trl.attribution.compute_mask import compute_mask
from wagle_trl.attribution.config import MaskConfig
from wagle_trl.attribution.scores import SCORES
from wagle_trl.attribution.statistics import accumulate_statistic
from wagle_trl.data.tokenization import tokenize_row
from wagle_trl.losses.per_sample import sample_losses
from wagle_trl.masks.info import UNKNOWN_REVISION
from wagle_trl.masks.mask import WeightMask
from wagle_trl.masks.scope import scope_parameters

PAD = 0


@pytest.fixture
def tokenized(tiny_tokenizer):
    """Rows -> `(input_ids, labels)`, labels -100 on the prompt."""

    def tokenize(rows):
        pairs = []
        for row in rows:
            prompt, answer = (tiny_tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
            pairs.append((prompt + answer, [-100] * len(prompt) + answer))
        return pairs

    return tokenize


def collate(pairs, side="right", extra=0):
    length = max(len(ids) for ids, _ in pairs) + extra

    def padded(values, fill):
        gap = [fill] * (length - len(values))
        return values + gap if side == "right" else gap + values

    return {
        "input_ids": torch.tensor([padded(ids, PAD) for ids, _ in pairs]),
        "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids, _ in pairs]),
        "labels": torch.tensor([padded(labels, -100) for _, labels in pairs]),
    }


def batched(pairs, size, **kwargs):
    return [collate(pairs[i : i + size], **kwargs) for i in range(0, len(pairs), size)]


def by_single_rows(model, parameters, pairs, power):
    """Mean over rows of the gradient, or its square, of transformers' own loss of that row alone."""
    model.eval()
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for ids, labels in pairs:
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        for name, grad in zip(parameters, torch.autograd.grad(loss, list(parameters.values()))):
            totals[name] += grad**power / len(pairs)
    return totals


def assert_same(actual, expected, tolerance=2e-5):
    """Largest error of every parameter relative to its largest value."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == torch.float32 and actual[name].shape == value.shape
        error = (actual[name] - value).abs().max() / value.abs().max()
        assert error < tolerance, f"{name}: {error:.1e}"


# Statistics


@pytest.mark.parametrize("squared", [False, True], ids=["gradient", "fisher"])
@pytest.mark.parametrize("size", [1, 3, 6])
def test_statistics_are_those_of_single_rows_for_any_batch_size(squared, size, tiny_model, tokenized, forget_rows):
    model, pairs = tiny_model(), tokenized(forget_rows)
    assert len({len(ids) for ids, _ in pairs}) > 2  # so that there is padding
    parameters = scope_parameters(model)
    expected = by_single_rows(model, parameters, pairs, 2 if squared else 1)
    assert_same(accumulate_statistic(model, parameters, batched(pairs, size), squared=squared), expected)


@pytest.mark.parametrize("squared", [False, True], ids=["gradient", "fisher"])
@pytest.mark.parametrize("padding", [{"extra": 20}, {"side": "left"}], ids=str)
def test_padding_does_not_count(squared, padding, tiny_model, tokenized, forget_rows):
    model, pairs = tiny_model(), tokenized(forget_rows)
    parameters = scope_parameters(model)
    expected = by_single_rows(model, parameters, pairs, 2 if squared else 1)
    statistic = accumulate_statistic(model, parameters, batched(pairs, 3, **padding), squared=squared)
    assert_same(statistic, expected, tolerance=1e-4)


def test_statistics_of_bf16_weights_are_fp32(tiny_model, tokenized, forget_rows):
    model, pairs = tiny_model(dtype=torch.bfloat16), tokenized(forget_rows)
    exact = by_single_rows(model.float(), scope_parameters(model), pairs, 1)
    model = model.to(torch.bfloat16)
    assert_same(accumulate_statistic(model, scope_parameters(model), batched(pairs, 3)), exact, tolerance=0.1)


def test_sample_losses_are_transformers_losses_of_each_row(tiny_model, tokenized, forget_rows):
    model, pairs = tiny_model().eval(), tokenized(forget_rows)
    means, num_tokens = sample_losses(model, collate(pairs, extra=3))
    expected = [model(input_ids=torch.tensor([i]), labels=torch.tensor([t])).loss for i, t in pairs]
    torch.testing.assert_close(means, torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert num_tokens.tolist() == [sum(t != -100 for t in labels) for _, labels in pairs]


@pytest.mark.parametrize("sweeps", [None, 3])
def test_lists_loaders_generators_and_callables_are_read_alike(sweeps, tiny_model, tokenized, forget_rows):
    model, pairs = tiny_model(), tokenized(forget_rows)
    memory = "auto" if sweeps is None else "sweeps"
    config = MaskConfig("gradient", attribution_memory=memory, attribution_sweeps=sweeps)
    batches = batched(pairs, 2)
    loader = DataLoader(pairs, batch_size=2, collate_fn=collate)
    forms = [batches, loader, iter(batches), lambda: batches, lambda: iter(loader)]
    first, *others = (compute_mask(model, form, config=config, progress=False)[0] for form in forms)
    assert all(other == first for other in others)


def test_a_loss_of_ones_own_replaces_the_default(tiny_model, tokenized, forget_rows):
    model, batches = tiny_model(), batched(tokenized(forget_rows), 2)

    def doubled(model, batch):
        means, num_tokens = sample_losses(model, batch)
        return 2 * means, num_tokens

    parameters = scope_parameters(model)
    single = accumulate_statistic(model, parameters, batches)
    twice = accumulate_statistic(model, parameters, batches, losses=doubled)
    assert_same(twice, {name: 2 * value for name, value in single.items()})


def test_weights_out_of_scope_get_no_gradient(tiny_model, tokenized, forget_rows):
    model = tiny_model()
    seen = []

    def watching(model, batch):
        seen.append({name for name, p in model.named_parameters() if p.requires_grad})
        result = sample_losses(model, batch)
        seen.append({name for name, p in model.named_parameters() if p.grad is not None})
        return result

    parameters = scope_parameters(model, ["*down_proj*"])
    accumulate_statistic(model, parameters, batched(tokenized(forget_rows), 3), losses=watching)
    assert seen == [set(parameters), set()] * 2
    assert len(parameters) == 2


# The model stays as it was


class Fault(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
@pytest.mark.parametrize("squared", [False, True])
def test_the_model_is_left_as_it_was(squared, fails, tiny_model, tokenized, forget_rows):
    model = tiny_model()
    model.train()
    model.model.layers[0].mlp.eval()  # a part that its owner keeps in eval mode
    model.model.norm.weight.requires_grad_(False)
    in_scope, outside = model.model.layers[0].mlp.up_proj.weight, model.lm_head.weight
    in_scope.grad, outside.grad = torch.ones_like(in_scope), torch.ones_like(outside)
    grads = {name: p.grad for name, p in model.named_parameters()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []

    def losses(model, batch):
        assert not any(module.training for module in model.modules())
        calls.append(batch)
        if fails and len(calls) == 2:
            raise Fault
        return sample_losses(model, batch)

    def run():
        batches = batched(tokenized(forget_rows), 3)
        accumulate_statistic(model, scope_parameters(model), batches, squared=squared, losses=losses)

    if fails:
        with pytest.raises(Fault):
            run()
    else:
        run()
    assert len(calls) >= 2
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(p.grad is grads[name] for name, p in model.named_parameters())
    assert (in_scope.grad == 1).all() and (outside.grad == 1).all()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    sample_losses(model, collate(tokenized(forget_rows)))[0].sum().backward()  # hooks would free these
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())


# Scope

NORMS = ["input_layernorm", "post_attention_layernorm"]
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LINEARS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
BLOCKS = [f"model.layers.{i}.{name}.weight" for i in range(2) for name in LINEARS + NORMS]


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (None, None, [*BLOCKS, "model.norm.weight"]),
        ([], [], [*BLOCKS, "model.norm.weight"]),
        (["*"], None, ["model.embed_tokens.weight", *BLOCKS, "model.norm.weight", "lm_head.weight"]),
        (["lm_head*"], None, ["lm_head.weight"]),
        (["*.mlp.*"], ["*.1.*"], [name for name in BLOCKS if ".0.mlp." in name]),
        (None, ["*norm*"], [name for name in BLOCKS if "norm" not in name]),
        (["*norm.weight", "*.up_proj.*"], ["*layernorm*"], [*(n for n in BLOCKS if "up" in n), "model.norm.weight"]),
    ],
    ids=["default", "empty lists", "all", "head", "both", "exclude", "several"],
)
def test_scope_patterns_choose_parameters_in_model_order(include, exclude, names, tiny_model):
    model = tiny_model()
    chosen = scope_parameters(model, include, exclude)
    assert list(chosen) == names
    assert all(chosen[name] is model.get_parameter(name) for name in names)


def test_frozen_and_empty_weights_are_out_of_scope(tiny_model):
    model = tiny_model()
    model.model.norm.weight.requires_grad_(False)
    model.model.placeholder = nn.Parameter(torch.empty(0))
    assert list(scope_parameters(model)) == BLOCKS


@pytest.mark.parametrize("include", [["*"], ["lm_head*"], ["*embed*"]])
def test_tied_weights_count_once_under_their_first_name(include, tiny_model):
    names = list(scope_parameters(tiny_model(tie_word_embeddings=True), include))
    assert names.count("model.embed_tokens.weight") == 1
    assert "lm_head.weight" not in names


def test_tied_weights_are_outside_the_default_scope(tiny_model):
    assert list(scope_parameters(tiny_model(tie_word_embeddings=True))) == [*BLOCKS, "model.norm.weight"]


def test_the_gradient_of_tied_weights_is_that_of_both_uses(tiny_model, tokenized, forget_rows):
    model, pairs = tiny_model(tie_word_embeddings=True), tokenized(forget_rows)
    parameters = scope_parameters(model, ["*embed*"])
    expected = by_single_rows(model, parameters, pairs, 1)
    assert_same(accumulate_statistic(model, parameters, batched(pairs, 3)), expected)


@pytest.mark.parametrize(("include", "exclude"), [(["*.nothing"], None), (None, ["*"])])
def test_a_scope_that_matches_nothing_says_how_names_look(include, exclude, tiny_model):
    message = r"No trainable parameter is in scope: mask_scope .*, mask_exclude .*names like 'model\.embed_tokens"
    with pytest.raises(ValueError, match=message):
        scope_parameters(tiny_model(), include, exclude)


def test_plain_modules_and_transposed_weights_have_scores_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 1))
    model[0].weight = nn.Parameter(torch.randn(4, 6).t())
    batches = [{"input_ids": torch.randn(3, 4)}, {"input_ids": torch.randn(2, 4)}]

    def losses(model, batch):
        out = model(batch["input_ids"]).squeeze(1)
        return out**2, torch.ones(len(out))

    mask, _ = compute_mask(
        model, batches, config=MaskConfig("gradient", mask_density=0.5), losses=losses, progress=False
    )
    x = torch.cat([batch["input_ids"] for batch in batches])
    grads = torch.autograd.grad((model(x) ** 2).mean(), list(model.parameters()))
    flat = torch.cat([grad.reshape(-1).abs() for grad in grads])
    chosen = torch.cat([mask.dense(name).view(-1) for name, _ in model.named_parameters()])
    assert set(chosen.nonzero().view(-1).tolist()) == set(flat.topk(int(chosen.sum())).indices.tolist())


# Masks

SCORES_BY_HAND = {
    "wagle": lambda t, f, r: ((t - r / (r.abs().mean() / t.abs().mean())) * f).abs(),
    "gradient": lambda t, f, r: f.abs(),
    "snip": lambda t, f, r: (t * f).abs(),
    "product": lambda t, f, r: (f * r).abs(),
    "magnitude": lambda t, f, r: t.abs(),
    "ratio": lambda t, f, r: f.abs() / (r.abs() + 2.0 * r.abs().mean()),
    "fisher_ratio": lambda t, f, r: f / (r + 2.0 * r.mean()),
}


@pytest.fixture
def setting(tiny_model, tokenized, forget_rows, retain_rows):
    """Model, forget pairs, retain pairs."""
    return tiny_model(), tokenized(forget_rows), tokenized(retain_rows)


def jaccard_of(mask, bits):
    """Overlap with a flat boolean tensor over the scope."""
    pieces = dict(zip(mask.bits, bits.split([mask.numel_of(name) for name in mask.bits])))
    return mask.jaccard(WeightMask.from_dense({name: p.view(mask.shapes[name]) for name, p in pieces.items()}))


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()])


def top(scores, k):
    bits = torch.zeros(len(scores), dtype=torch.bool)
    bits[scores.argsort(descending=True, stable=True)[:k]] = True
    return bits


def test_every_score_is_tried_here():
    assert set(SCORES_BY_HAND) | {"random"} == set(SCORES)
    assert {SCORES[name].formula for name in SCORES_BY_HAND} | {"random"} == set(FORMULAS)


@pytest.mark.parametrize("name", SCORES_BY_HAND)
def test_masks_are_the_top_k_of_their_formula(name, setting):
    model, forget, retain = setting
    config = MaskConfig(mask_score=name, mask_density=0.1, mask_eps=2.0)
    mask, report = compute_mask(model, batched(forget, 3), batched(retain, 4), config, progress=False)
    parameters = scope_parameters(model)
    power = 2 if name == "fisher_ratio" else 1
    f, r = (flat(by_single_rows(model, parameters, pairs, power)) for pairs in (forget, retain))
    k = round(0.1 * len(f))
    assert mask.num_selected == report["num_selected"] == k
    assert jaccard_of(mask, top(SCORES_BY_HAND[name](flat(parameters), f, r), k)) > 0.995  # rounding at the threshold


def test_balanced_gamma_is_the_ratio_of_the_means(setting):
    model, forget, retain = setting
    mask, _ = compute_mask(model, batched(forget, 3), batched(retain, 4), MaskConfig("wagle"), progress=False)
    parameters = scope_parameters(model)
    r = flat(by_single_rows(model, parameters, retain, 1))
    assert mask.info.gamma == "balanced"
    assert mask.info.scale == pytest.approx(float(r.abs().mean() / flat(parameters).abs().mean()), rel=1e-5)


def test_a_given_gamma_is_used_as_it_is(setting):
    model, forget, retain = setting
    config = MaskConfig("wagle", mask_density=0.1, mask_gamma="0.003")
    mask, _ = compute_mask(model, batched(forget, 3), batched(retain, 4), config, progress=False)
    parameters = scope_parameters(model)
    f, r = (flat(by_single_rows(model, parameters, pairs, 1)) for pairs in (forget, retain))
    assert mask.info.scale == 0.003
    assert jaccard_of(mask, top(((flat(parameters) - r / 0.003) * f).abs(), mask.num_selected)) > 0.995


def published_gradient(model, parameters, batches):
    """Sum over batches of the gradient of transformers' batch loss, a mean over all its answer tokens."""
    model.eval()
    model.zero_grad()
    for batch in batches:
        model(**batch).loss.backward()
    total = {name: p.grad.clone() for name, p in parameters.items()}
    model.zero_grad()
    return total


@pytest.mark.parametrize("density", [0.05, 0.5])
@pytest.mark.parametrize("size", [2, 4])
def test_official_gamma_gives_the_published_mask(size, density, setting):
    model, forget, retain = setting
    forget, retain = batched(forget, size), batched(retain, size)
    parameters = scope_parameters(model)
    f, r = (flat(published_gradient(model, parameters, batches)) for batches in (forget, retain))
    scores = ((flat(parameters) - r / 1e-6) * f).abs()
    ranks = scores.argsort(descending=True).argsort()
    k = round(density * len(scores))

    config = MaskConfig("wagle", mask_gamma="official", mask_density=density)
    mask, report = compute_mask(model, forget, retain, config, progress=False)
    assert jaccard_of(mask, ranks < k) > 0.995  # 1.000 but for rounding at the threshold
    assert mask.info.scale == 1e-6
    assert jaccard_of(mask, top((f * r).abs(), k)) > 0.999  # degenerate: the weights have no say
    assert report["jaccard"]["|g_f*g_r|"] > 0.999
    balanced, _ = compute_mask(model, forget, retain, MaskConfig("wagle", mask_density=density), progress=False)
    assert mask.jaccard(balanced) < 0.8


@pytest.mark.parametrize("name", [n for n in SCORES if n != "random"])
def test_masks_do_not_depend_on_the_batch_size(name, setting):
    model, forget, retain = setting
    masks = [
        compute_mask(model, batched(forget, n), batched(retain, n), MaskConfig(name, 0.1), progress=False)[0]
        for n in (1, 5)
    ]
    assert masks[0].jaccard(masks[1]) > 0.995


@pytest.mark.parametrize("name", SCORES)
def test_scores_read_only_the_data_they_need(name, setting):
    model, forget, retain = setting
    score = SCORES[name]
    data = [batched(forget, 3) if score.statistic else None, batched(retain, 3) if score.uses_retain else None]
    mask, _ = compute_mask(model, *data, MaskConfig(name), progress=False)
    assert mask.num_selected == round(0.05 * mask.numel)
    for i, stream in enumerate(["forget", "retain"]):
        if data[i] is not None:
            missing = [None if j == i else d for j, d in enumerate(data)]
            with pytest.raises(ValueError, match=f"mask_score '{name}' needs {stream} data; pass some or choose"):
                compute_mask(model, *missing, MaskConfig(name), progress=False)


def test_a_mask_says_how_it_was_made(setting, tmp_path):
    model, forget, retain = setting
    model.config._name_or_path = "org/base"
    config = MaskConfig("ratio", 0.02, mask_scope=["*mlp*"], mask_exclude=["*.0.*"], mask_seed=7)
    mask, report = compute_mask(model, batched(forget, 3), batched(retain, 3), config, progress=False)
    info = WeightMask.load(mask.save(tmp_path)).info
    assert info == mask.info
    assert report["info"] == {key: text for key, text in info.to_metadata().items() if key != "jaccard"}
    assert report["jaccard"] == info.jaccard
    assert (info.score, info.seed, info.base_model, info.base_revision) == ("ratio", 7, "org/base", UNKNOWN_REVISION)
    assert (info.scope, info.exclude) == (("*mlp*",), ("*.0.*",))
    assert {"wagle-trl", "torch", "transformers"} == info.versions.keys()
    assert info.threshold > 0 and info.others == {}
    mask.check(model)


def test_masks_of_bf16_models_work_as_those_of_fp32(tiny_model, tokenized, forget_rows, retain_rows):
    model = tiny_model(dtype=torch.bfloat16)
    data = (batched(tokenized(rows), 3) for rows in (forget_rows, retain_rows))
    mask, _ = compute_mask(model, *data, MaskConfig(), progress=False)
    mask.check(model)
    mask.check(tiny_model(dtype=torch.bfloat16).float())


# Bad input


def test_no_batches_are_refused(tiny_model):
    with pytest.raises(ValueError, match="No batches to attribute: the data set is empty"):
        compute_mask(tiny_model(), [], config=MaskConfig("gradient"), progress=False)


def test_a_row_without_answer_is_refused(tiny_model, tokenized, forget_rows):
    batch = collate(tokenized(forget_rows))
    batch["labels"][2] = -100
    with pytest.raises(ValueError, match="Row 2 of a batch has no answer tokens"):
        compute_mask(tiny_model(), [batch], config=MaskConfig("gradient"), progress=False)


@pytest.mark.parametrize("name", ["gradient", "fisher_ratio"])
def test_gradients_that_are_not_finite_are_refused(name, setting):
    model, forget, retain = setting
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"The gradient of 'model\.layers\..*' is NaN or infinite"):
        compute_mask(model, batched(forget, 3), batched(retain, 3), MaskConfig(name), progress=False)


def test_weights_that_are_not_finite_are_refused(tiny_model):
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"The score of 'model\.layers\.1\.mlp\.up_proj\.weight' is NaN or infinite"):
        compute_mask(model, None, config=MaskConfig("magnitude"), progress=False)


# Rows


def test_rows_make_the_mask_of_their_tokens(tiny_model, tiny_tokenizer, forget_rows, retain_rows):
    model, config = tiny_model(), MaskConfig(mask_score="wagle", mask_density=0.2)
    rows = ([tokenize_row(row, tiny_tokenizer) for row in part] for part in (forget_rows, retain_rows))
    pairs = ([(row["input_ids"], row["labels"]) for row in part] for part in rows)
    expected, _ = compute_mask(model, *(batched(part, 2) for part in pairs), config, progress=False)
    mask, _ = compute_mask(
        model, forget_rows, retain_rows, config, tokenizer=tiny_tokenizer, batch_size=2, progress=False
    )
    assert mask == expected


def test_rows_need_a_tokenizer(tiny_model, forget_rows, retain_rows):
    with pytest.raises(ValueError, match="The forget rows are a `Dataset`; pass the model's `tokenizer` beside them"):
        compute_mask(tiny_model(), forget_rows, retain_rows)
