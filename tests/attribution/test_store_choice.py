"""The choice of a tier by what it takes, against all tiers there are in the order of their speed."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wagle_trl.attribution.config import MaskConfig, Tier
from wagle_trl.attribution.scores import SCORES
from wagle_trl.attribution.statistic_store import split_evenly
from wagle_trl.attribution.store_choice import (
    HEADROOM,
    MAX_QUICK_SWEEPS,
    choose_tier,
    memory_phases,
    off_device_bytes,
    working_components,
)
from wagle_trl.memory.available import free_memory
from wagle_trl.memory.simulation import WorkingMemory

GB = 10**9
PLENTY = 10**15


def make_parameters(*numels):
    return {f"layers.{i}.weight": torch.empty(numel, device="meta") for i, numel in enumerate(numels)}


LAYERS = make_parameters(*[50_000_000] * 100)  # 20 GB a statistic, 0.2 GB a parameter
TOTAL = 20 * GB


@pytest.fixture
def host(monkeypatch):
    """Sets how much memory is free on the host."""

    def set_free(free):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))

    set_free(0)
    return set_free


def choose(score, free, on_gpu=True, working=5 * GB, memory="auto", parameters=LAYERS):
    config = MaskConfig(score, attribution_memory=memory)
    return choose_tier(config, parameters, SCORES[score], working, free, on_gpu)


def peak(tier, score, on_gpu=True, working=5 * GB, parameters=LAYERS):
    phases = memory_phases(tier, parameters, SCORES[score], WorkingMemory(0, working), on_gpu)
    return max(sum(phase.values()) for phase in phases)


# The choice, from much room on the device to none


@pytest.mark.parametrize("score", ["wagle", "fisher_ratio", "gradient"])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_statistics_stay_on_the_device_where_there_is_room(score, on_gpu, host):
    host(PLENTY)
    assert choose(score, PLENTY, on_gpu) == choose(score, None, on_gpu) == Tier("resident")


# Free GB on the device, for two statistics of 20 GB, 0.2 GB a parameter, and a step that takes 5 GB
FALLING = [
    (48, "resident"),
    (47, "offload"),
    (27, "offload"),
    (26, "2 sweeps"),
    (15, "3 sweeps"),
    (8.1, "8 sweeps"),
    (7.9, "host"),
    (5.3, "host"),
]


@pytest.mark.parametrize(("free", "name"), FALLING)
def test_with_less_room_come_the_host_few_sweeps_and_the_host_alone(free, name, host):
    host(PLENTY)
    assert str(choose("wagle", free * GB)) == name


@pytest.mark.parametrize(
    ("host_free", "free", "name"),
    [
        (TOTAL, 27, "offload"),
        (TOTAL - 1, 27, "1 sweeps"),
        (2 * TOTAL, 7.9, "host"),
        (2 * TOTAL - 1, 7.9, "12 sweeps"),
        (0, 5.7, "64 sweeps"),
        (0, 5.6, "100 sweeps"),
    ],
)
def test_without_room_on_the_host_come_sweeps(host_free, free, name, host):
    host(host_free)
    assert str(choose("wagle", free * GB)) == name


BESIDE_THE_HOST = [(48, "resident"), (27, "1 sweeps"), (7.9, "12 sweeps"), (5.7, "64 sweeps")]


@pytest.mark.parametrize(("free", "name"), BESIDE_THE_HOST)
def test_on_a_cpu_the_host_is_no_other_place(free, name, host):
    host(PLENTY)
    assert str(choose("wagle", free * GB, on_gpu=False)) == name


@pytest.mark.parametrize(("free", "name"), [(100, "1 sweeps"), *BESIDE_THE_HOST[1:]])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_sweeps_that_are_asked_for_are_as_few_as_fit(free, name, on_gpu, host):
    host(PLENTY)
    assert str(choose("wagle", free * GB, on_gpu, memory="sweeps")) == name
    assert str(choose("wagle", None, on_gpu, memory="sweeps")) == "1 sweeps"


@pytest.mark.parametrize("score", ["gradient", "snip"])
def test_a_single_statistic_is_not_moved_away_from_itself(score, host):
    host(PLENTY)
    names = {choose(score, free * GB / 10).name for free in range(1, 400)}
    assert names == {"resident", "sweeps", "host"}


@pytest.mark.parametrize("score", ["wagle", "gradient", "fisher_ratio"])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_where_nothing_fits_the_tier_that_takes_least_is_chosen(score, on_gpu, host):
    tiers = [Tier("resident"), *(Tier("sweeps", count) for count in range(1, 101))]
    least = min(peak(tier, score, on_gpu) for tier in tiers)
    assert peak(choose(score, 0, on_gpu), score, on_gpu) == least
    assert choose(score, 0, on_gpu) == Tier("sweeps", len(LAYERS))


def fastest_first(score, parameters, host_free, on_gpu):
    """All tiers there may be."""
    total = 4 * sum(p.numel() for p in parameters.values())
    count = SCORES[score].num_statistics
    sweeps = [Tier("sweeps", n) for n in range(1, len(parameters) + 1)]
    tiers = [Tier("resident")] + [Tier("offload")] * (on_gpu and count == 2 and total <= host_free)
    tiers += [tier for tier in sweeps if tier.sweeps <= MAX_QUICK_SWEEPS]
    tiers += [Tier("host")] * (on_gpu and count * total <= host_free)
    return tiers + [tier for tier in sweeps if tier.sweeps > MAX_QUICK_SWEEPS]


TRIED = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64}  # numbers of sweeps


@settings(max_examples=200)
@given(
    st.lists(st.integers(10**3, 10**6), min_size=1, max_size=20),
    st.sampled_from(["wagle", "gradient", "fisher_ratio"]),
    st.floats(0, 2),
    st.floats(0, 1),
    st.floats(0, 3),
    st.booleans(),
)
def test_the_tier_fits_and_no_faster_one_does(numels, score, free, working, host_free, on_gpu):
    parameters = make_parameters(*numels)
    total = 4 * sum(numels)
    free, working, host_free = (round(share * total) for share in (free, working, host_free))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=host_free))
        chosen = choose(score, free, on_gpu, working, parameters=parameters)
    tiers = [
        tier
        for tier in fastest_first(score, parameters, host_free, on_gpu)
        if tier.name != "sweeps" or tier.sweeps in TRIED | {len(parameters)}
    ]
    peaks = [peak(tier, score, on_gpu, working, parameters) for tier in tiers]
    fitting = [tier for tier, size in zip(tiers, peaks) if size <= HEADROOM * free]
    assert chosen == (fitting[0] if fitting else tiers[peaks.index(min(peaks))])


# What a tier takes

AT_ONCE = [  # statistics of 20 GB on the device while adding up, and while selecting
    ("resident", "wagle", True, 2, 2),
    ("resident", "gradient", True, 1, 1),
    ("offload", "wagle", True, 1, 1),
    ("host", "wagle", True, 0, 0),
    ("host", "wagle", False, 2, 2),
    ("offload", "wagle", False, 2, 2),
    ("sweeps", "wagle", True, 0.25, 0),
]


@pytest.mark.parametrize(("name", "score", "on_gpu", "adding", "selecting"), AT_ONCE)
def test_phases_hold_the_statistics_that_their_tier_holds(name, score, on_gpu, adding, selecting):
    tier, working = Tier(name, 4 if name == "sweeps" else 1), WorkingMemory(kept=GB, peak=3 * GB)
    added, selected, compared = memory_phases(tier, LAYERS, SCORES[score], working, on_gpu)
    assert added == {"statistics": adding * TOTAL, "activations": GB, "backward pass": 2 * GB}
    copied = selected["statistics"] - selecting * TOTAL  # of a parameter at a time
    moved = selecting < SCORES[score].num_statistics
    assert copied == moved * SCORES[score].num_statistics * 200_000_000
    assert selected["masks"] == 2 * TOTAL // 32
    assert compared == {"statistics": selecting * TOTAL, "masks": 3 * TOTAL // 32}
    assert selected["candidates"] > 0


def test_scores_of_fisher_information_take_their_roots_too():
    selected = [
        memory_phases(tier, LAYERS, SCORES[score], WorkingMemory(0, 0), True)[1]["statistics"]
        for score in ("ratio", "fisher_ratio")
        for tier in (Tier("resident"), Tier("sweeps", 4))
    ]
    one = 2 * 200_000_000
    assert selected == [2 * TOTAL, one, 2 * TOTAL + one, 2 * one]


def test_working_memory_is_what_is_kept_and_the_rest_of_the_peak():
    assert working_components(WorkingMemory(kept=3, peak=10)) == {"activations": 3, "backward pass": 7}


@pytest.mark.parametrize(
    ("name", "places"),
    [("resident", {}), ("offload", {"host": 1}), ("host", {"host": 2}), ("sweeps", {"disk": 2})],
)
def test_what_is_not_on_the_device_is_elsewhere(name, places):
    expected = {place: count * TOTAL for place, count in places.items()}
    assert off_device_bytes(Tier(name, 3), LAYERS, SCORES["wagle"]) == expected
    if name in ("host", "sweeps"):
        assert off_device_bytes(Tier(name, 3), LAYERS, SCORES["gradient"]) == dict.fromkeys(places, TOTAL)


@pytest.mark.parametrize(("sweeps", "numel"), [(1, 27), (2, 15), (3, 11), (7, 9)])
def test_a_sweep_holds_the_statistic_of_the_largest_part(sweeps, numel):
    parameters = make_parameters(5, 1, 9, 2, 2, 8)
    assert max(sum(p.numel() for p in part.values()) for part in split_evenly(parameters, sweeps)) == numel
    phases = memory_phases(Tier("sweeps", sweeps), parameters, SCORES["wagle"], WorkingMemory(0, 0), True)
    assert phases[0]["statistics"] == 4 * numel


def test_free_memory_of_a_cpu_is_that_of_the_machine():
    assert free_memory(torch.device("cpu")) == pytest.approx(psutil.virtual_memory().available, rel=0.1)


@pytest.mark.parametrize(("share", "free"), [(1.0, 102), (0.05, 45)])
def test_free_memory_of_a_gpu_is_what_the_driver_and_torch_have_left_within_the_limit(share, free, monkeypatch):
    sizes = {"memory_reserved": 7, "memory_allocated": 5, "mem_get_info": (100, 1000)}
    for name, size in (sizes | {"get_per_process_memory_fraction": share}).items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert free_memory(torch.device("cuda")) == free
