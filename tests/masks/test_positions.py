import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wagle_kernels
from wagle_trl.masks.positions import bits_at, check_bits, count, decode, encode, positions_of


def random_bits(numel, density, seed=0):
    selected = torch.rand(numel, generator=torch.Generator().manual_seed(seed)) < density
    return selected, wagle_kernels.pack(selected)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(numel=st.integers(0, 3000), density=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_a_code_gives_back_its_mask_and_is_never_longer(numel, density, seed):
    selected, bits = random_bits(numel, density, seed)
    coding, code = encode(bits, numel)
    assert torch.equal(decode(coding, code, numel), bits)
    assert count(coding, code, numel) == int(selected.sum())
    assert code.numel() <= bits.numel()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(numel=st.integers(0, 3000), density=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_positions_are_those_of_the_dense_mask(numel, density, seed):
    selected, bits = random_bits(numel, density, seed)
    assert torch.equal(positions_of(bits, numel), selected.nonzero().view(-1))
    assert torch.equal(bits_at(positions_of(bits, numel), numel), bits)


@pytest.mark.parametrize("place", [-1, 0, 1])
@pytest.mark.parametrize("multiple", [0, 1, 2])
def test_gaps_around_multiples_of_255_come_back(multiple, place):
    first = max(0, 255 * multiple + place)
    for positions in ([first], [first, first + 1], [first, 2 * first + 1]):
        for after in (0, 1, 253, 254, 255, 256):
            numel = positions[-1] + 1 + after + 4000  # long enough for gaps to be shorter than bits
            for shift in (0, 4000):
                bits = bits_at(torch.tensor(positions) + shift, numel)
                coding, code = encode(bits, numel)
                assert coding == "gaps"
                assert torch.equal(decode(coding, code, numel), bits)


def test_positions_go_beyond_one_chunk():
    numel = 2 * wagle_kernels.CHUNK + 77
    selected, bits = random_bits(numel, 0.01)
    coding, code = encode(bits, numel)
    assert coding == "gaps"
    assert torch.equal(positions_of(decode(coding, code, numel), numel), selected.nonzero().view(-1))


def test_at_density_005_positions_take_less_than_0056_bytes_a_weight():
    numel = 10**6
    coding, code = encode(random_bits(numel, 0.05)[1], numel)
    assert coding == "gaps"
    assert code.numel() < 0.056 * numel


@pytest.mark.parametrize(("density", "coding"), [(0.0, "gaps"), (0.05, "gaps"), (0.2, "bits"), (1.0, "bits")])
def test_the_shorter_coding_is_chosen(density, coding):
    assert encode(random_bits(10_000, density)[1], 10_000)[0] == coding


def test_a_code_is_of_one_number_of_weights():
    code = encode(random_bits(5000, 0.01)[1], 5000)[1]
    for numel in (0, 1, 4999, 5001, 2**60):
        with pytest.raises(ValueError, match=f"has gaps that do not lead to the end of its {numel} weights"):
            decode("gaps", code, numel)


@pytest.mark.parametrize(
    ("coding", "code", "message"),
    [
        ("gaps", torch.tensor([], dtype=torch.uint8), "do not lead to the end"),
        ("gaps", torch.tensor([20, 255], dtype=torch.uint8), "do not lead to the end"),
        ("gaps", torch.tensor([255, 0], dtype=torch.uint8), "do not lead to the end"),
        (
            "gaps",
            torch.tensor([20], dtype=torch.int8),
            r"needs gaps in one dimension of bytes, got \(1,\) of torch.int8",
        ),
        ("gaps", torch.tensor([[20]], dtype=torch.uint8), r"got \(1, 1\) of torch.uint8"),
        ("gaps", torch.tensor(20, dtype=torch.uint8), r"got \(\) of torch.uint8"),
        ("bits", torch.tensor([0, 0], dtype=torch.uint8), "of 20 weights needs 3 mask bytes"),
        ("bits", torch.tensor([0, 0, 16], dtype=torch.uint8), "has mask bits set beyond its 20 weights"),
        ("bits", torch.tensor([0, 0, 0], dtype=torch.int8), "of 20 weights needs 3 mask bytes"),
    ],
)
@pytest.mark.parametrize("read", [decode, count])
def test_what_is_no_code_of_20_weights_is_refused(read, coding, code, message):
    with pytest.raises(ValueError, match=message):
        read(coding, code, 20)
    assert count("gaps", torch.tensor([20], dtype=torch.uint8), 20) == 0
    assert torch.equal(
        check_bits(torch.tensor([1, 2, 15], dtype=torch.uint8), 20), bits_at(torch.tensor([0, 9, 16, 17, 18, 19]), 20)
    )


def test_counting_takes_no_memory_of_the_weights(allocations):
    code = torch.full((1001,), 255, dtype=torch.uint8)
    code[-1] = 0
    with allocations as memory:
        assert count("gaps", code, 255_000) == 0
    assert memory.peak < 2 * len(code)
