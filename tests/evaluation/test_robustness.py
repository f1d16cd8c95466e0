import pytest

from wagle_trl.evaluation import robustness
from wagle_trl.evaluation.attacks import quantized, relearn_split
from wagle_trl.evaluation.robustness import AttackConfig, evaluate_attack
from wagle_trl.evaluation.suite import evaluate_sets, summarize_all
from wagle_trl.evaluation.tofu import EvalOptions

OPTIONS = EvalOptions(generate=False)


@pytest.fixture
def sets(forget_rows, retain_rows):
    return {"forget": forget_rows.to_list(), "retain": retain_rows.to_list(), "holdout": retain_rows.to_list()}


@pytest.fixture
def attack(tiny_tokenizer, sets):
    def attack(model, variant, rows=sets, **config):
        config = AttackConfig(**{"relearn_steps": 3, "relearn_learning_rate": 1e-2} | config)
        return evaluate_attack(model, tiny_tokenizer, rows, variant, config, OPTIONS, progress=False)

    return attack


def paraphrase(rows):
    return [row | {"paraphrased_question": "Her home?"} for row in rows]


def test_quantize_is_two_attacks_and_none_is_the_default():
    assert AttackConfig(attack=["paraphrase", "quantize"]).variants == [
        "quantize_int8",
        "quantize_int4",
        "paraphrase",
    ]
    assert AttackConfig().variants == []


@pytest.mark.parametrize(("variant", "bits"), [("quantize_int8", 8), ("quantize_int4", 4)])
def test_quantization_is_the_evaluation_of_the_quantized_model(
    tiny_model, tiny_tokenizer, attack, sets, variant, bits
):
    model = tiny_model()
    result = attack(model, variant)
    part = {name: sets[name] for name in ("forget", "retain")}
    expected = evaluate_sets(quantized(model, bits), tiny_tokenizer, part, OPTIONS, progress=False)
    assert result.records == expected
    details = {"rows": {"forget": 6, "retain": 10}, "rounding": "nearest"}
    assert result.summary == summarize_all(expected) | details
    assert result.records != evaluate_sets(model, tiny_tokenizer, part, OPTIONS, progress=False)


def test_relearning_is_measured_on_the_rows_it_did_not_see(tiny_model, attack, sets):
    result = attack(tiny_model(), "relearn", relearn_share=0.5, relearn_seed=4)
    trained, rest = relearn_split(6, 0.5, seed=4)
    assert result.summary["relearned_rows"] == trained
    assert result.summary["rows"] == {"forget": 3, "retain": 10}
    answers = [record["answer"] for record in result.records if record["set"] == "forget"]
    assert answers == [sets["forget"][i]["completion"].strip() for i in rest]
    assert [point["step"] for point in result.summary["curve"]] == [0, 3]
    relearned = pytest.approx(result.summary["forget_prob"], rel=1e-4)  # of the same rows in other batches
    assert result.summary["curve"][-1]["forget_probability"] == relearned


def test_options_of_relearning_reach_it(tiny_model, tiny_tokenizer, sets, monkeypatch):
    seen = {}

    def spy(model, tokenizer, rows, **options):
        seen.update(options)
        raise InterruptedError

    monkeypatch.setattr(robustness, "relearn", spy)
    options = {"share": 0.4, "steps": 7, "learning_rate": 3e-4, "batch_size": 2, "seed": 9}
    config = AttackConfig(**{f"relearn_{name}": value for name, value in options.items()})
    with pytest.raises(InterruptedError):
        evaluate_attack(tiny_model(), tiny_tokenizer, sets, "relearn", config, progress=False)
    assert seen == options | {"options": EvalOptions(), "progress": False}


def test_a_paraphrase_is_asked_of_the_rows_that_have_one(tiny_model, attack, sets):
    rows = sets | {"forget": [*paraphrase(sets["forget"][:2]), *sets["forget"][2:]]}
    result = attack(tiny_model(), "paraphrase", rows)
    assert result.summary["rows"] == {"forget": 2}
    assert {record["question"] for record in result.records} == {"Her home?"}
    rows["retain"] = paraphrase(sets["retain"])
    assert attack(tiny_model(), "paraphrase", rows).summary["rows"] == {"forget": 2, "retain": 10}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attack": ["relearn", "prune"]}, r"a list of relearn, quantize, paraphrase, got '\['relearn', 'prune'\]'"),
        ({"attack": "relearn"}, "a list of relearn, quantize, paraphrase, got 'relearn'"),
        ({"relearn_steps": 0}, "relearn_steps must be at least 1, got 0"),
        ({"relearn_batch_size": 0}, "relearn_batch_size must be at least 1, got 0"),
        ({"relearn_learning_rate": 0.0}, "relearn_learning_rate must be positive, got 0.0"),
    ],
)
def test_bad_options_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        AttackConfig(**config)


@pytest.mark.parametrize(
    ("config", "names", "message"),
    [
        ({"attack": ["quantize"]}, ["retain"], "there are none"),
        ({"attack": ["relearn"], "relearn_share": 1.5}, ["forget"], "is 1.5; it must lie between 0 and 1"),
        ({"attack": ["paraphrase"]}, ["forget"], "No row of the set 'forget' has a `paraphrased_question`"),
    ],
)
def test_rows_that_do_not_allow_an_attack_are_refused_before_it(sets, config, names, message):
    with pytest.raises(ValueError, match=message):
        AttackConfig(**config).check({name: sets[name] for name in names})


def test_rows_are_only_asked_for_what_the_attacks_need(sets):
    AttackConfig(attack=["quantize"]).check({"forget": sets["forget"][:1]})
    AttackConfig().check({"retain": sets["retain"]})


def test_an_unknown_variant_is_refused(tiny_model, attack):
    with pytest.raises(ValueError, match="Unknown attack 'quantize'; expected one of relearn, quantize_int8"):
        attack(tiny_model(), "quantize")
