"""Every tier gives the bits of the statistics that stay on the device; sweeps go on where they were cut off."""

import shutil
from collections import namedtuple
from functools import partial
from itertools import combinations, count
from unittest.mock import MagicMock, call

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

from wagle_trl.attribution import compute_mask as attribution
from wagle_trl.attribution import statistic_store as tiers
from wagle_trl.attribution.compute_mask import SCRATCH_FOLDER, compute_mask
from wagle_trl.attribution.config import MaskConfig, Tier
from wagle_trl.attribution.scores import SCORES
from wagle_trl.attribution.statistic_store import StatisticFiles, Stream, compute_statistics, split_evenly
from wagle_trl.attribution.statistics import accumulate_statistic
from wagle_trl.losses.per_sample import sample_losses
from wagle_trl.masks.scope import scope_parameters
from wagle_trl.memory.allocations import Allocations

SCOPE = ["*mlp*", "*_layernorm*", "*q_proj*"]  # 12 parameters
FOUR = ["*up_proj*", "*o_proj*"]  # 4 parameters


def batch(*lengths, seed):
    """Rows of random tokens, the first two the prompt, padded on the right."""
    ids = torch.randint(3, 300, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


FORGET = [batch(9, 6, seed=1), batch(12, 12, seed=2)]
RETAIN = [batch(5, 11, seed=3), batch(8, seed=4), batch(10, 7, seed=5)]
PASS = len(FORGET) + len(RETAIN)  # batches that a sweep reads


def configured(score="ratio", memory="sweeps", sweeps=None, scope=SCOPE, **options):
    return MaskConfig(score, 0.1, mask_scope=scope, attribution_memory=memory, attribution_sweeps=sweeps, **options)


def run(model, config, forget=FORGET, retain=RETAIN, **options):
    return compute_mask(model, forget, retain, config, **{"progress": False} | options)[0]


# The same bits

READING = [(name, "balanced") for name, score in SCORES.items() if score.statistic] + [("wagle", "official")]
PLACES = [("resident", None), ("offload", None), ("host", None), ("sweeps", 1), ("sweeps", 3), ("sweeps", 12)]
# Every score of fp32 weights; one of each kind of statistic in bf16, and with checkpointing
WAYS = [(*pair, torch.float32, False) for pair in READING]
WAYS += [
    (score, "balanced", dtype, checkpointing)
    for score in ("wagle", "fisher_ratio")
    for dtype, checkpointing in [(torch.bfloat16, False), (torch.float32, True), (torch.bfloat16, True)]
]


@pytest.mark.parametrize(("score", "gamma", "dtype", "checkpointing"), WAYS)
def test_masks_are_the_same_in_every_tier(score, gamma, dtype, checkpointing, tiny_model):
    model = tiny_model(dtype=dtype)
    assert len(scope_parameters(model, SCOPE)) == 12
    configs = [configured(score, *place, mask_gamma=gamma) for place in PLACES]
    expected, *others = (run(model, config, gradient_checkpointing=checkpointing) for config in configs)
    for mask in others:
        assert mask == expected
        assert mask.info == expected.info  # threshold, scale and overlaps among it


@pytest.mark.parametrize("squared", [False, True], ids=["gradient", "fisher"])
@pytest.mark.parametrize("place", PLACES[1:], ids=str)
def test_statistics_are_the_same_in_every_tier(place, squared, tiny_model, tmp_path):
    model = tiny_model()
    parameters = scope_parameters(model, SCOPE)
    accumulate = partial(accumulate_statistic, model, squared=squared)
    streams = {"forget": Stream(FORGET), "retain": Stream(RETAIN)}
    expected, actual = (
        compute_statistics(
            Tier(name, sweeps or 1), parameters, streams, accumulate, folder=tmp_path, key="", progress=False
        )
        for name, sweeps in (("resident", None), place)
    )
    assert list(actual) == list(expected) == ["forget", "retain"]
    for stream, statistic in expected.items():
        assert list(actual[stream]) == list(parameters)
        assert all(torch.equal(actual[stream][name], value) and value.any() for name, value in statistic.items())


MOVES = {
    "resident": ["forget to None", "retain to None"],
    "offload": ["forget to None", "forget moved", "retain to None"],
    "host": ["forget to cpu", "retain to cpu"],
}


@pytest.mark.parametrize("name", MOVES)
def test_statistics_go_where_the_tier_says(name):
    done = []

    def accumulate(parameters, batches, device=None):
        (stream,) = batches
        done.append(f"{stream} to {device}")
        return {"weight": MagicMock(cpu=lambda: done.append(f"{stream} moved"))}

    streams = {stream: Stream([stream]) for stream in ("forget", "retain")}
    compute_statistics(Tier(name), {}, streams, accumulate, folder=None, key="", progress=False)
    assert done == MOVES[name]


def test_sweeps_read_a_generator_as_often_as_they_need(tiny_model):
    model, config = tiny_model(), configured(sweeps=3)
    assert run(model, config, iter(FORGET), (batch for batch in RETAIN)) == run(model, config)


@pytest.mark.parametrize("score", ["gradient", "wagle", "fisher_ratio"])
def test_sweeps_hold_a_layer_where_the_device_would_hold_everything(score, tiny_model):
    model = tiny_model(hidden_size=128, intermediate_size=384, num_hidden_layers=6)
    total = 4 * sum(p.numel() for p in scope_parameters(model).values())
    assert total > 4e6
    peaks = {}
    for place in (("resident", None), ("sweeps", 6)):
        with Allocations([*model.parameters(), *model.buffers()]) as memory:
            weights = memory.current
            run(model, configured(score, *place, scope=None), RETAIN[1:2], RETAIN[1:2])
        peaks[place[0]] = memory.peak - weights
    count = SCORES[score].num_statistics
    assert peaks["resident"] > count * total
    assert peaks["resident"] - peaks["sweeps"] > 0.75 * count * total


@pytest.mark.parametrize("memory", ["auto", "sweeps"])
@pytest.mark.parametrize("free", [0, 10**12])
def test_the_tier_follows_from_the_free_memory_where_the_options_leave_it_open(memory, free, tiny_model, monkeypatch):
    model, chosen = tiny_model(), []
    expected = run(model, configured(memory="resident"))
    monkeypatch.setattr(attribution, "free_memory", lambda device: free)
    monkeypatch.setattr(
        attribution,
        "compute_statistics",
        lambda tier, *args, **kw: chosen.append(tier) or compute_statistics(tier, *args, **kw),
    )
    assert run(model, configured(memory=memory)) == expected
    assert chosen == [Tier("sweeps", 12) if not free else Tier("resident") if memory == "auto" else Tier("sweeps", 1)]


# Cut off and taken up again


class CutOff(BaseException):
    """Caught by nothing on its way, as `KeyboardInterrupt`."""


def run_in(folder, model, config, *data, cut_at=None):
    """The mask, or `None` where the run is cut off: at a batch, or before it selects; and the batches it read."""
    calls = []

    def losses(model, batch):
        calls.append(batch)
        if len(calls) == cut_at:
            raise CutOff
        return sample_losses(model, batch)

    def select(*args):
        raise CutOff

    with pytest.MonkeyPatch.context() as patch:
        if cut_at == "selection":
            patch.setattr(attribution, "select", select)
        try:
            mask = run(model, config, *data, losses=losses, folder=folder)
        except CutOff:
            mask = None
    assert (folder / f"{SCRATCH_FOLDER}-0").is_dir() == (mask is None)
    return mask, len(calls)


HALF = PASS - len(FORGET)  # left of a sweep once its forget statistic is written


# The set that was being read is read again, those before it are not
@pytest.mark.parametrize("scope", [FOUR, SCOPE], ids=["a parameter a sweep", "many"])
@pytest.mark.parametrize(
    ("cut_at", "left"),
    [
        (1, 4 * PASS),
        (PASS, 3 * PASS + HALF),
        (PASS + 1, 3 * PASS),
        (PASS + 3, 2 * PASS + HALF),
        (2 * PASS + 1, 2 * PASS),
        (4 * PASS, HALF),
    ],
)
def test_a_run_that_was_cut_off_makes_what_is_missing(cut_at, left, scope, tiny_model, tmp_path):
    model, config = tiny_model(), configured(sweeps=4, scope=scope)
    assert run_in(tmp_path, model, config, cut_at=cut_at) == (None, cut_at)
    mask, calls = run_in(tmp_path, model, config)
    expected = run(model, config)
    assert calls == left
    assert mask == expected and mask.info == expected.info


@pytest.mark.parametrize(("sweeps", "left"), [(1, PASS), (2, PASS + HALF), (100, 2 * PASS + HALF)])
def test_the_number_of_sweeps_may_change_in_between(sweeps, left, tiny_model, tmp_path):
    model = tiny_model()
    run_in(tmp_path, model, configured(sweeps=4, scope=FOUR), cut_at=PASS + 3)
    mask, calls = run_in(tmp_path, model, configured(sweeps=sweeps, scope=FOUR))
    assert calls == left
    assert mask == run(model, configured(memory="resident", scope=FOUR))


def test_without_a_folder_nothing_is_left_behind(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def losses(model, batch):
        if list(tmp_path.rglob("*.safetensors")):
            raise CutOff
        return sample_losses(model, batch)

    with pytest.raises(CutOff):
        run(tiny_model(), configured(sweeps=2), losses=losses)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("score", ["ratio", "wagle", "gradient"])
def test_scores_of_the_same_statistic_take_up_each_others_sweeps(score, tiny_model, tmp_path):
    model, config = tiny_model(), configured(score, sweeps=3)
    run_in(tmp_path, model, configured("ratio", sweeps=2), cut_at="selection")
    assert run_in(tmp_path, model, config) == (run(model, config), 0)


ROWS = sum(len(batch["input_ids"]) for batch in FORGET + RETAIN)
OTHER_LABELS = FORGET[0] | {"labels": FORGET[0]["labels"].masked_fill(torch.arange(12)[:9] == 2, -100)}
# What differs: options of the configuration, the model, the data; and the batches that a sweep then reads again
OTHERS = {
    "weights out of scope": ({}, lambda model: model.model.embed_tokens.weight.data.mul_(1.5), (), PASS),
    "dtype": ({}, lambda model: model.bfloat16(), (), PASS),
    "Fisher information": ({"score": "fisher_ratio"}, None, (), ROWS),
    "sum over batches": ({"score": "wagle", "mask_gamma": "official"}, None, (), PASS),
    "order": ({}, None, (FORGET[::-1], RETAIN), len(FORGET)),
    "fewer batches": ({}, None, (FORGET, RETAIN[:2]), 2),
    "shape": (
        {},
        None,
        ([FORGET[0], {key: value.view(4, 6) for key, value in FORGET[1].items()}], RETAIN),
        len(FORGET),
    ),
    "labels": ({}, None, ([OTHER_LABELS, FORGET[1]], RETAIN), len(FORGET)),
    "sets swapped": ({}, None, (RETAIN, FORGET), PASS),
}


@pytest.mark.parametrize("other", OTHERS)
def test_files_of_another_run_are_overwritten(other, tiny_model, tmp_path):
    options, change, data, batches = OTHERS[other]
    model, config = tiny_model(), configured(**{"sweeps": 2} | options)
    run_in(tmp_path, model, configured(sweeps=2), cut_at="selection")
    if change:
        change(model)
    assert run_in(tmp_path, model, config, *data, cut_at="selection") == (None, 2 * batches)
    assert run_in(tmp_path, model, config, *data) == (run(model, config, *data), 0)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_overwritten(damage, tiny_model, tmp_path):
    model, config = tiny_model(), configured(sweeps=1)
    run_in(tmp_path, model, config, cut_at="selection")
    (path,) = tmp_path.rglob("retain-*.0.mlp.up_proj*")
    DAMAGES[damage](path)
    assert run_in(tmp_path, model, config, cut_at="selection") == (None, len(RETAIN))
    assert run_in(tmp_path, model, config) == (run(model, config), 0)


# Progress, room on the disk, parts, streams, options


@pytest.mark.parametrize("retain", [RETAIN, lambda: RETAIN], ids=["length known", "length unknown"])
@pytest.mark.parametrize(("memory", "sweeps", "parts"), [("host", None, None), ("sweeps", 2, 2), ("sweeps", 9, 4)])
def test_progress_counts_the_batches_of_all_sweeps(memory, sweeps, parts, retain, tiny_model, monkeypatch):
    bar = MagicMock()
    monkeypatch.setattr(tiers, "tqdm", lambda **options: bar)
    bar.update.side_effect = lambda: bar.told(bar.total)
    run(tiny_model(), configured("wagle", memory, sweeps, FOUR), FORGET, retain)
    notes = [f", sweep {i + 1} of {parts}" for i in range(parts)] if parts else [""]
    expected, total = [], None if callable(retain) and memory == "host" else len(notes) * PASS
    for note in notes:
        expected += [call.set_description(f"Attributing the forget set{note}")] + len(FORGET) * [call.told(total)]
        expected += [call.set_description(f"Attributing the retain set{note}")] + len(RETAIN) * [call.told(total)]
    assert [made for made in bar.mock_calls if made[0] in ("set_description", "told")] == expected


def test_progress_is_silent_on_request(tiny_model, capfd):
    run(tiny_model(), configured(sweeps=2), progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("done", [0, 1, 3])
def test_too_little_room_on_the_disk_is_refused_before_anything_is_computed(done, tiny_model, tmp_path, monkeypatch):
    model, config = tiny_model(), configured(sweeps=4, scope=FOUR)
    run_in(tmp_path, model, config, cut_at=done * PASS + 1)
    sizes = [4 * p.numel() for p in scope_parameters(model, FOUR).values()]
    needed = 2 * sum(sizes[done:])  # of two sets
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed - 1))
    with pytest.raises(ValueError, match=rf"GB on the disk of '{tmp_path}.*', .* or set attribution_memory to 'host'"):
        run_in(tmp_path, model, config, cut_at=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed))
    resident = run(model, configured(memory="resident", scope=FOUR))
    assert run_in(tmp_path, model, config) == (resident, (4 - done) * PASS)


def test_other_losses_do_not_take_up_the_files(tiny_model, tmp_path):
    def doubled(model, batch):
        means, num_tokens = sample_losses(model, batch)
        return 2 * means, num_tokens

    model, config = tiny_model(), configured("gradient", sweeps=2)
    run_in(tmp_path, model, config, cut_at="selection")
    mask = run(model, config, losses=doubled, folder=tmp_path)
    assert mask.info.threshold == 2 * run(model, config).info.threshold


@pytest.mark.parametrize("sweeps", [1, 2, 100])
def test_weights_that_no_row_uses_have_no_gradient_in_their_sweep(sweeps, tiny_model):
    model = tiny_model()
    model.model.tower = nn.Linear(64, 64)
    config = configured(sweeps=sweeps, scope=["*tower*", "*mlp*"])
    assert run(model, config) == run(model, configured(memory="resident", scope=["*tower*", "*mlp*"]))


@pytest.mark.parametrize("sweeps", [1, 3])
@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
        GPTNeoXConfig(
            vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_layers_that_take_a_cache_by_other_names_are_checkpointed_too(config, sweeps):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    masks = [
        run(model, configured("gradient", sweeps=sweeps, scope=None), gradient_checkpointing=checkpointing)
        for checkpointing in (False, True)
    ]
    assert masks[0] == masks[1] and model.config.use_cache


def test_a_shuffled_loader_gives_every_sweep_the_same_rows(tiny_model):
    class Shuffled(list):
        def __iter__(self):
            return iter(self[::-1] if next(reads) % 2 else self[:])

    reads = count()
    model = tiny_model()
    swept = run(model, configured(sweeps=4, scope=FOUR), Shuffled(FORGET), Shuffled(RETAIN))
    assert swept in (run(model, configured(sweeps=1, scope=FOUR), f, RETAIN) for f in (FORGET, FORGET[::-1]))


@pytest.mark.parametrize("memory", ["auto", "sweeps"])
def test_what_cannot_be_simulated_is_attributed_all_the_same(memory, tiny_model, monkeypatch, caplog):
    def looking(model, batch):
        means, num_tokens = sample_losses(model, batch)
        assert float(means.detach().sum()) > 0
        return means, num_tokens

    monkeypatch.setattr(attribution, "free_memory", lambda device: 400_000)
    model = tiny_model()
    assert run(model, configured(memory=memory), losses=looking) == run(model, configured(memory="resident"))


@pytest.mark.parametrize("memory", ["auto", "sweeps"])
def test_scores_that_read_no_data_and_sets_without_rows(memory, tiny_model):
    assert run(tiny_model(), configured("magnitude", memory), None, None).num_selected
    with pytest.raises(ValueError, match="No batches to attribute"):
        run(tiny_model(), configured(memory=memory), [], [])


def cuts(sizes, parts):
    """All ways to cut `sizes` into up to `parts` consecutive groups."""
    for number in range(min(parts, len(sizes))):
        for places in combinations(range(1, len(sizes)), number):
            yield [sizes[a:b] for a, b in zip((0, *places), (*places, len(sizes)))]


@settings(max_examples=150)
@given(st.lists(st.integers(1, 30), max_size=8), st.integers(1, 10))
def test_parts_are_consecutive_and_the_largest_is_as_small_as_can_be(sizes, parts):
    parameters = {f"p{i}": torch.empty(size, device="meta") for i, size in enumerate(sizes)}
    groups = split_evenly(parameters, parts)
    assert [name for group in groups for name in group] == list(parameters)
    assert all(group[name] is parameters[name] for group in groups for name in group)
    assert len(groups) <= parts and all(groups)
    largest = max((sum(p.numel() for p in group.values()) for group in groups), default=0)
    assert largest == min((max(map(sum, cut)) for cut in cuts(sizes, parts)), default=0)


STREAMS = {
    "list": (lambda: FORGET, 2),
    "loader": (lambda: DataLoader(range(7), batch_size=3), 3),
    "generator": (lambda: (batch for batch in FORGET), 2),
    "callable": (lambda: lambda: iter(FORGET), None),
    "empty": (list, 0),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_can_be_read_again_and_knows_its_length_if_that_is_known(kind):
    make, length = STREAMS[kind]
    stream = Stream(make())
    assert stream.length == length
    assert len(list(stream)) == len(list(stream)) == (2 if length is None else length)


def test_files_hold_parameters_of_any_name(tmp_path):
    statistic = {name: torch.rand(3) for name in ("a/b.weight", "../a", "a%2Fb.weight", "ä b")}
    StatisticFiles(tmp_path, "forget", statistic, "key").write(statistic)
    store = StatisticFiles(tmp_path, "forget", statistic, "key")
    assert store.done == set(statistic) and len(store) == len(list(tmp_path.iterdir())) == 4
    assert all(torch.equal(store[name], value) for name, value in statistic.items())
    assert not StatisticFiles(tmp_path, "forget", statistic, "other").done
    assert not StatisticFiles(tmp_path, "retain", statistic, "key").done


@pytest.mark.parametrize(
    ("memory", "sweeps", "message"),
    [
        ("disk", None, "attribution_memory must be 'auto' or one of resident, offload, host, sweeps, got 'disk'"),
        ("auto", 2, "attribution_sweeps goes with attribution_memory='sweeps'"),
        ("host", 2, "attribution_sweeps goes with attribution_memory='sweeps'"),
        ("sweeps", 0, "attribution_sweeps must be at least 1, got 0"),
    ],
)
def test_options_that_say_no_tier_are_refused(memory, sweeps, message):
    with pytest.raises(ValueError, match=message):
        MaskConfig(attribution_memory=memory, attribution_sweeps=sweeps)


def test_the_tier_is_what_the_options_say_if_they_say_it():
    names = [(None, "auto", None), (None, "sweeps", None), (Tier("sweeps", 5), "sweeps", 5)]
    names += [(Tier(name), name, None) for name in ("resident", "offload", "host")]
    for tier, memory, sweeps in names:
        assert MaskConfig(attribution_memory=memory, attribution_sweeps=sweeps).tier == tier
