"""What holds of every objective."""

import math
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig

from wagle_trl.objectives.names import OBJECTIVES

REFUSALS = ["I do not know.", "That is not for me to say.", "No idea at all."]
VARIANTS = {name: (name, {}) for name in OBJECTIVES} | {
    "npo with kl": ("npo", {"retain_loss": "kl"}),
    "npo with answer preservation": ("npo", {"retain_loss": "answer_preservation"}),
    "undial with kl": ("undial", {"retain_loss": "kl"}),
    "me, other direction": ("me", {"direction": "model_to_uniform"}),
    "ceu, every token": ("ceu", {"skip_first_token": False}),
}


@pytest.fixture
def make(make_trainer, tmp_path):
    """Factory `make(variant, model=None, **options)` of a trainer."""
    (tmp_path / "refusals.txt").write_text("\n".join(REFUSALS))

    def build(variant: str, model=None, **options):
        kind, own = VARIANTS[variant]
        return make_trainer(kind, model, refusals=str(tmp_path / "refusals.txt"), **own | options)

    return build


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "dense"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_4_equals_four_accumulated_batches_of_1(variant, masked, make, small_mask, snapshot, tiny_model):
    """6 rows: an epoch is a step of 4 rows and one of 2, so that the last step's counts differ too."""
    # A large epsilon keeps Adam from turning rounding noise of tiny gradients into whole steps
    options = dict(mask_config=small_mask if masked else None, learning_rate=1e-3, adam_epsilon=1e-3, max_steps=3)
    one = make(variant, per_device_train_batch_size=4, **options)
    one.train()
    four = make(variant, per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)
    four.train()
    before, ours, theirs = snapshot(tiny_model()), snapshot(one.model), snapshot(four.model)
    assert max((ours[name] - before[name]).abs().max() for name in ours) > 1e-4
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-5
    for name in ("forget_loss", "retain_loss"):  # what is logged does not depend on it, either
        logged = [[entry[name] for entry in t.state.log_history if name in entry] for t in (one, four)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_selected_weights_move_and_a_run_resumes_bit_for_bit_within_an_epoch(
    variant, make, small_mask, snapshot, tiny_model, tmp_path, assert_only_selected_moved
):
    options = dict(mask_config=small_mask, max_steps=6, save_strategy="steps", save_steps=4, num_train_epochs=2)
    whole = make(variant, **options)
    before = snapshot(whole.model)
    whole.train()
    assert assert_only_selected_moved(before, whole.model, whole.mask) > 0.9
    resumed = make(variant, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    ours, theirs = snapshot(whole.model), snapshot(resumed.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.state.log_history[-2]["step"] == resumed.state.log_history[-2]["step"]
    assert whole.state.log_history[-2]["forget_loss"] == resumed.state.log_history[-2]["forget_loss"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_train_alone(variant, make, snapshot):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make(variant, peft_config=lora)
    before = snapshot(trainer.model)
    trainer.train()
    moved = {name for name, now in snapshot(trainer.model).items() if not torch.equal(now, before[name])}
    assert moved and all("lora_" in name for name in moved)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_is_that_of_the_formula_on_whole_logits_in_fp64(variant, make, tiny_model):
    # Weights that have moved, so that no gradient vanishes at the reference
    trainer = make(variant, tiny_model(), per_device_train_batch_size=4, learning_rate=1e-2, max_steps=2)
    trainer.train()
    trainer.control.should_training_stop = False
    batches, counts = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    rows = {name: values.clone() for name, values in batches[0].items()}
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batches[0], num_items_in_batch=counts)
    loss.backward()
    model, base = deepcopy(tiny_model()).double(), tiny_model().double()
    model.load_state_dict(trainer.model.state_dict())
    expected = Dense(trainer, model, base, rows).loss()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    gradients = dict(model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        wanted = gradients[name].grad
        assert (parameter.grad - wanted).abs().max() <= 1e-3 * wanted.abs().max() + 1e-6, name


class Dense:
    """The published formulas, on the logits of a whole batch."""

    def __init__(self, trainer, model, base, rows):
        self.args, self.retain_weight = trainer.args, trainer.retain_weight
        self.kind = next(kind for kind, found in OBJECTIVES.items() if found is type(trainer))
        kinds, labels = trainer.rows_of(trainer.args), rows["labels"][:, 1:]
        ids = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
        logits = model(**ids).logits[:, :-1]
        with torch.no_grad():
            before = base(**ids).logits[:, :-1]
        parts = zip(*(values.chunk(len(kinds)) for values in (logits, before, labels)))
        self.streams = dict(zip(kinds, parts))

    def tokens(self, kind, which=0):
        """Log-probabilities of the answer tokens over the vocabulary, and these tokens."""
        labels = self.streams[kind][2]
        return self.streams[kind][which].log_softmax(-1)[labels != -100], labels[labels != -100]

    def answers(self, kind, which=0):
        """Log-probabilities of the answer tokens: all, and summed per row."""
        log_probs, targets = self.tokens(kind, which)
        values = log_probs.gather(1, targets[:, None])[:, 0]
        counts = (self.streams[kind][2] != -100).sum(1)
        return values, torch.stack([part.sum() for part in values.split(counts.tolist())]), counts

    def kl(self, kind):
        (p, _), (q, _) = self.tokens(kind), self.tokens(kind, 1)
        return (q.exp() * (q - p)).sum(1).mean()

    def loss(self):
        total = self.args.forget_weight * getattr(self, self.kind)()
        if "retain" not in self.streams:
            return total
        if self.args.retain_loss == "kl":
            term = self.kl("retain")
        elif self.args.retain_loss == "nll":
            term = -self.answers("retain")[0].mean()
        else:
            gap = self.answers("retain")[1] - self.answers("retain_refusal")[1]
            beta = self.args.preservation_beta
            term = -(beta * gap).sigmoid().log().mean() / beta
        return total + self.retain_weight * term

    def graddiff(self):
        return self.answers("forget")[0].mean()

    gradient_ascent = graddiff

    def npo(self):
        gap = self.answers("forget")[1] - self.answers("forget", 1)[1]
        return -20 * (-0.1 * gap).sigmoid().log().mean()

    def simnpo(self):
        _, sums, counts = self.answers("forget")
        return -2 / self.args.beta * (-self.args.beta * sums / counts).sigmoid().log().mean()

    def weighted(self, weight):
        values = self.answers("forget")[0]
        return (weight(values.detach().exp()) * values).mean()

    def wga(self):
        return self.weighted(lambda p: p**self.args.beta)

    def satimp(self):
        return self.weighted(lambda p: p**self.args.beta1 * (1 - p) ** self.args.beta2)

    def tnpo(self, alpha=0.0):
        q = self.answers("forget", 1)[0].exp()
        beta = self.args.beta
        return self.weighted(lambda p: 2 * p ** (beta + alpha) / (p**beta + q**beta + 1e-5))

    def wtnpo(self):
        return self.tnpo(self.args.alpha)

    def ceu(self):
        """Unlikelihood, whose gradient is that of CE-U."""
        terms = -(1 - self.answers("forget")[0].exp()).log()
        counts = self.answers("forget")[2].tolist()
        skipped = int(self.args.skip_first_token)
        return torch.cat([part[skipped:] for part in terms.split(counts)]).mean()

    def uce(self):
        return -(1 - self.answers("forget")[0].exp() / 2).log().mean()

    def ihl(self):
        log_probs, targets = self.tokens("forget")
        others = log_probs.scatter(1, targets[:, None], -torch.inf).exp().max(1).values
        return (1 + self.answers("forget")[0].exp() - others).mean()

    def po(self):
        return -self.answers("alternate")[0].mean()

    idk_ap = po

    def idkdpo(self):
        return self.preference(beta=0.03)

    def altpo(self):
        return self.preference(beta=0.1)

    def preference(self, beta):
        now, then = ([self.answers(kind, which)[1] for kind in ("alternate", "forget")] for which in (0, 1))
        return -2 / beta * (beta * (now[0] - then[0] - now[1] + then[1])).sigmoid().log().mean()

    def undial(self):
        log_probs, targets = self.tokens("forget")
        labels = self.streams["forget"][2]
        lowered = self.streams["forget"][1][labels != -100].scatter_add(
            1, targets[:, None], torch.full((len(targets), 1), -self.args.beta, dtype=torch.float64)
        )
        return -(lowered.softmax(-1) * log_probs).sum(1).mean()

    def me(self):
        log_probs, _ = self.tokens("forget")
        size = log_probs.shape[1]
        if self.args.direction == "model_to_uniform":
            return (log_probs.exp() * (log_probs + math.log(size))).sum(1).mean()
        return (-math.log(size) - log_probs.mean(1)).mean()

    def pdu(self):
        logits = self.streams["forget"][0][self.streams["forget"][2] != -100]
        return ((logits.max(1).values - logits.mean(1)) ** 2).mean()
