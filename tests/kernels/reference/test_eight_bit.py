"""Moments in 8 bits: what a code stands for, how values are rounded, and what that does to Adam."""

import pytest
import torch

from wagle_kernels import RANK_GROUP
from wagle_kernels.reference.eight_bit import (
    decode_signed,
    decode_unsigned,
    encode_signed,
    encode_unsigned,
    exponent_above,
    random_bits,
)

from ..helpers import DEVICE, State, make_layout

EXPONENTS = [0, 1, 17, 63, 64, 95, 96, 128, 200, 223]  # of largest values from 2**-96 to 2**127
CPU = torch.device("cpu")


def group_of(largest, numel):
    """Exponents of a group of `numel` elements."""
    return exponent_above(torch.tensor([float(largest)])).expand(numel)


# Codes


def test_a_state_of_zeros_stands_for_zeros():
    zeros = torch.zeros(1, dtype=torch.uint8)
    assert decode_signed(zeros.to(torch.int8), zeros).item() == 0
    assert decode_unsigned(zeros, zeros).item() == 0


def test_a_first_moment_of_zero_stays_zero_beside_any_other():
    exponents = torch.arange(224, dtype=torch.uint8)
    assert not encode_signed(torch.zeros(224), exponents).any()
    assert not decode_signed(torch.zeros(224, dtype=torch.int8), exponents).any()


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_encoding_undoes_decoding_of_every_first_moment(exponent):
    codes = torch.arange(-127, 128).to(torch.int8)
    exponents = torch.full((255,), exponent, dtype=torch.uint8)
    values = decode_signed(codes, exponents)
    assert values.isfinite().all() and (values.diff() > 0).all()
    assert torch.equal(encode_signed(values, exponents), codes)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("random", [0, 1, 2**19, 2**20 - 1])
def test_encoding_undoes_decoding_of_every_second_moment_whatever_the_random_bits(random, exponent):
    codes = torch.arange(1, 256).to(torch.uint8)
    exponents = torch.full((255,), exponent, dtype=torch.uint8)
    values = decode_unsigned(codes, exponents)
    assert values.isfinite().all() and (values.diff() > 0).all()
    assert torch.equal(encode_unsigned(values, exponents, torch.tensor(random, dtype=torch.int32)), codes)


@pytest.mark.parametrize("octave", [-90, -30, -1, 0, 1, 60, 126])
def test_the_largest_of_a_group_is_held_as_closely_as_any(octave):
    mantissas = torch.linspace(1, 2, 1001)[:-1]
    largest = mantissas * 2.0**octave  # each the largest of its own group
    exponents = exponent_above(largest)
    random = torch.full((1000,), 2**20 - 1, dtype=torch.int32)
    first = decode_signed(encode_signed(largest, exponents), exponents)
    second = decode_unsigned(encode_unsigned(largest, exponents, random), exponents)
    assert ((first / largest - 1).abs() <= 1 / 16).all()
    assert ((second / largest - 1).abs() <= 1 / 8).all()


# Rounding


@pytest.mark.parametrize("largest", [1e-20, 1e-3, 1.0, 1.99, 3e10])
def test_first_moments_are_off_by_half_a_level_at_most(largest):
    generator = torch.Generator().manual_seed(0)
    octaves = torch.rand(100_000, generator=generator) * 20
    values = largest * 2**-octaves * (torch.randint(0, 2, (100_000,), generator=generator) * 2 - 1)
    exponents = group_of(largest, len(values))
    decoded = decode_signed(encode_signed(values, exponents), exponents)
    off = (decoded.double() - values.double()).abs()
    half_level = 2.0 ** (values.abs().log2().floor().double() - 4)  # eight levels an octave
    lowest = decode_signed(torch.tensor([1], dtype=torch.int8), exponents[:1])
    assert (off <= half_level)[values.abs() >= lowest].all()
    assert (off < lowest)[values.abs() < lowest].all()
    assert lowest <= largest * 2**-14
    assert (decoded * values >= 0).all()


def second_moments(octaves, numel=4096):
    """Values of a group spread over some octaves, the largest 1.3."""
    values = 1.3 * 2 ** -(torch.rand(numel, generator=torch.Generator().manual_seed(0)) * octaves)
    return values.float(), group_of(1.3, numel)


def test_second_moments_are_rounded_without_bias_over_thirty_octaves():
    values, exponents = second_moments(octaves=30)
    draws = 1000
    total, largest_off = torch.zeros(len(values), dtype=torch.float64), 0.0
    for step in range(1, draws + 1):
        codes = encode_unsigned(values, exponents, random_bits(0, len(values), step, CPU))
        off = (decode_unsigned(codes, exponents) / values - 1).double()
        total += off
        largest_off = max(largest_off, float(off.abs().max()))
    assert largest_off < 1 / 8  # one of the two levels around a value
    upward = (values.view(torch.int32) & 0xFFFFF).double() / 2**20  # chance of the level above
    level = 2.0 ** (values.log2().floor().double() - 3) / values
    standard_error = level * (upward * (1 - upward) / draws).clamp(min=1e-5).sqrt()  # rare draws are not normal
    mean = total / draws
    assert (mean.abs() < 5 * standard_error).all()  # of 4,096 normal numbers the largest is about 3.7
    assert abs(mean.mean()) < 4 * standard_error.square().mean().sqrt() / len(values) ** 0.5


def test_second_moments_are_never_rounded_to_zero():
    values, exponents = second_moments(octaves=60)
    values[0] = 0
    for random in (torch.zeros(4096, dtype=torch.int32), random_bits(0, 4096, 1, CPU)):
        codes = encode_unsigned(values, exponents, random)
        assert codes.min() == 1
        assert (decode_unsigned(codes, exponents) > 0).all()


def test_random_bits_are_uniform_and_differ_between_elements_and_steps():
    first, second = (random_bits(0, 100_000, step, CPU).double() / 2**20 for step in (1, 2))
    for bits in (first, second):
        assert bits.min() >= 0 and bits.max() < 1
        assert abs(bits.mean() - 1 / 2) < 0.004  # four standard errors
        counts = torch.histc(bits, bins=100, min=0, max=1)
        assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi squared with 99 degrees of freedom: p ~ 1e-4
    for a, b in ((first, second), (first[1:], first[:-1])):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.013


@pytest.mark.parametrize("start", [1, 1000, 2**32 - 500])
def test_random_bits_belong_to_the_compact_element(start):
    whole = random_bits(start, 1000, 7, CPU)
    parts = [random_bits(start + first, 250, 7, CPU) for first in range(0, 1000, 250)]
    assert torch.equal(whole, torch.cat(parts))
    assert random_bits(2**32, 1, 7, CPU) == random_bits(0, 1, 7, CPU)


# Moving averages


def follow(grads, steps, rounding):
    """The moving average of squares that never change, its codes rounded with the random bits of each step."""
    v, beta2 = torch.zeros(len(grads)), 0.999
    for step in range(1, steps + 1):
        v = v * beta2 + grads**2 * (1 - beta2)
        exponents = exponent_above(v.max().view(1)).expand(len(v))
        v = decode_unsigned(encode_unsigned(v, exponents, rounding(step)), exponents)
    return v / (grads**2 * (1 - beta2**steps))


def test_a_slow_moving_average_follows_where_rounding_to_nearest_stands_still():
    grads = torch.randn(RANK_GROUP * 16, generator=torch.Generator().manual_seed(0))
    drawn = follow(grads, 2000, lambda step: random_bits(0, len(grads), step, CPU))
    nearest = follow(grads, 2000, lambda step: torch.full((len(grads),), 2**19, dtype=torch.int32))
    assert abs(drawn.mean() - 1) < 0.15
    assert drawn.min() > 0.3
    assert nearest.max() < 0.1


# Adam


def linear_adam(grads, *, beta1, beta2, eps):
    """Updates with both moments in 8 bits on equally spaced levels, scaled to the largest of the group."""
    m, v = torch.zeros_like(grads[0]), torch.zeros_like(grads[0])
    for step, g in enumerate(grads, 1):
        m, v = torch.lerp(m, g, 1 - beta1), v * beta2 + g * g * (1 - beta2)
        yield m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps)
        m_scale, v_scale = (x.abs().view(-1, RANK_GROUP).amax(1, keepdim=True) for x in (m, v))
        m = ((m.view(-1, RANK_GROUP) / m_scale * 127).round() / 127 * m_scale).view(-1)
        v = ((v.view(-1, RANK_GROUP) / v_scale * 255).round() / 255 * v_scale).view(-1)


def test_adam_stays_within_two_learning_rates_of_fp32_where_linear_levels_do_not():
    numel, steps = 64 * RANK_GROUP, 300
    options = dict(beta1=0.9, beta2=0.999, eps=1e-8)
    generator = torch.Generator().manual_seed(0)
    magnitudes = torch.exp(
        2 * torch.randn(numel, generator=generator)
    )  # neighbours in a group differ by e**2 and more
    grads = [magnitudes * torch.randn(numel, generator=generator) for _ in range(steps)]
    layout = make_layout([torch.ones(numel, dtype=torch.bool)], indexed=True)
    assert int(layout.groups[-1]) == numel // RANK_GROUP
    states = {bits: State.zeros([torch.zeros(numel)], layout, state_bits=bits) for bits in (32, 8)}
    off = {"8 bits": torch.zeros(steps, numel), "linear": torch.zeros(steps, numel)}
    for i, (grad, linear) in enumerate(zip(grads, linear_adam(grads, **options))):
        updates = {}
        for bits, state in states.items():
            state.weights[0].zero_()
            state.step(layout, grad, step=i + 1, lr=1.0, weight_decay=0.0, **options)
            updates[bits] = -state.weights[0]
        off["8 bits"][i] = (updates[8] - updates[32]).abs()
        off["linear"][i] = (linear - updates[32]).abs()
    assert off["8 bits"].max() < 2
    assert off["8 bits"].mean() < 0.05
    assert off["linear"].max() > 7
    assert off["linear"].mean() > 10 * off["8 bits"].mean()


def test_devices_round_alike():
    values, exponents = second_moments(octaves=30)
    random = random_bits(5, 4096, 3, CPU)
    assert torch.equal(random_bits(5, 4096, 3, DEVICE).cpu(), random)
    codes = encode_unsigned(values.to(DEVICE), exponents.to(DEVICE), random.to(DEVICE))
    assert torch.equal(codes.cpu(), encode_unsigned(values, exponents, random))
