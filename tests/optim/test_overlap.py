import pytest
import torch
from torch import nn

from wagle_trl.masks.mask import WeightMask
from wagle_trl.optim.masked_adamw import MaskedAdamW
from wagle_trl.optim.overlap import check_no_shared_memory

BUFFER = torch.zeros(12, 10)
FLAT = BUFFER.view(-1)
TIED = nn.Parameter(torch.ones(4, 3))

OVERLAPPING = {
    "another parameter of the same tensor": (FLAT[:30], FLAT[:30]),
    "one element in common": (FLAT[:30], FLAT[29:60]),
    "one inside another": (FLAT, FLAT[40:50]),
    "the other way round": (FLAT[40:50], FLAT),
    "another shape": (BUFFER[:5], FLAT[45:60]),
    "another dtype": (FLAT[:30], FLAT.view(torch.bfloat16)[50:70]),
    "a column": (BUFFER[3], BUFFER[:, 9]),
    "an expanded row": (FLAT[10:20], BUFFER[1].expand(7, 10)),
    "far apart in the list": (FLAT[:30], *(torch.ones(2) for _ in range(20)), FLAT[20:25]),
}
SEPARATE = {
    "neighbours": (FLAT[:30], FLAT[30:60], FLAT[60:]),
    "strides around it": (BUFFER[3, :9], BUFFER[:, 9]),
    "halves of every row": (BUFFER[:, :5], BUFFER[:, 5:], torch.ones(3)),
    "on meta": (torch.ones(3, device="meta"), torch.ones(3, device="meta")),
    "empty": (FLAT[:0], FLAT[:0], FLAT[:5]),
    "tied": (TIED, torch.ones(3), TIED),
}


def named(tensors):
    return [(f"w{i}", t if isinstance(t, nn.Parameter) else nn.Parameter(t)) for i, t in enumerate(tensors)]


@pytest.mark.parametrize("trained", ["first", "last"])
@pytest.mark.parametrize("tensors", OVERLAPPING.values(), ids=OVERLAPPING)
def test_two_parameters_with_a_weight_in_common_are_both_named(tensors, trained):
    pairs = named(tensors)
    with pytest.raises(ValueError, match=r"'w\d+' and 'w\d+' are two parameters in the same memory") as refused:
        check_no_shared_memory(pairs, [pairs[-1 if trained == "last" else 0][0]])
    assert "'w0'" in str(refused.value) and f"'{pairs[-1][0]}'" in str(refused.value)


@pytest.mark.parametrize("tensors", OVERLAPPING.values(), ids=OVERLAPPING)
def test_what_no_training_changes_may_share_memory(tensors):
    check_no_shared_memory([*named(tensors), ("trained", nn.Parameter(torch.ones(3)))], ["trained"])


@pytest.mark.parametrize("tensors", SEPARATE.values(), ids=SEPARATE)
def test_parameters_without_a_common_weight_pass(tensors):
    pairs = named(tensors)
    check_no_shared_memory(pairs, dict(pairs))


def test_the_optimizer_looks_at_what_the_mask_does_not_name_too():
    flat = torch.zeros(20)
    first, second = (nn.Parameter(flat[start : start + 12]) for start in (0, 8))
    mask = WeightMask.from_dense({"b": torch.ones(12)})
    with pytest.raises(ValueError, match="'a' and 'b' are two parameters in the same memory, so training one would"):
        MaskedAdamW([("a", first), ("b", second)], mask)
    with pytest.raises(ValueError, match="'a' and 'b' are two parameters"):
        MaskedAdamW([{"params": [("a", first)]}, {"params": [("b", second)]}], mask)


def test_views_of_one_buffer_train_alone():
    flat = torch.zeros(20)
    first, second = nn.Parameter(flat[:10]), nn.Parameter(flat[10:])
    optimizer = MaskedAdamW([("a", first), ("b", second)], WeightMask.from_dense({"b": torch.arange(10) < 3}))
    (first.sum() + second.sum()).backward()
    optimizer.step()
    assert flat.nonzero().flatten().tolist() == [10, 11, 12]
