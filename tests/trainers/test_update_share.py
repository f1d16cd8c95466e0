import pytest
import torch
from torch import nn

from wagle_trl import WeightMask
from wagle_trl.trainers.update_share import SAMPLE_SIZE, MovedShare


def random_mask(model: nn.Module, density: float) -> WeightMask:
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(p.shape, generator=generator) < density for name, p in model.named_parameters()}
    return WeightMask.from_dense(masks)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 17), nn.Linear(17, 5))


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_nothing_has_moved_at_the_start(model, density):
    assert MovedShare(model, random_mask(model, density)).share() == 0.0


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_everything_has_moved_once_every_selected_weight_was_touched(model, density):
    mask = random_mask(model, density)
    moved = MovedShare(model, mask)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter[mask.dense(name)] += 1.0
    assert moved.share() == 1.0


@pytest.mark.parametrize("touched", [1, 7, 40])
def test_the_share_of_a_small_model_is_exact(model, touched):
    mask = random_mask(model, 0.5)
    moved = MovedShare(model, mask)
    selected = mask.dense("0.weight").nonzero()[:touched]
    with torch.no_grad():
        model[0].weight[tuple(selected.T)] *= 2
        model[1].weight[~mask.dense("1.weight")] += 1.0  # unselected weights do not count
    assert moved.share() == pytest.approx(touched / mask.num_selected)


def test_the_share_of_a_large_model_is_estimated_from_a_sample():
    model = nn.Linear(1024, 1024, bias=False)
    mask = random_mask(model, 0.5)
    moved = MovedShare(model, mask)
    assert sum(len(indices) for _, indices, _ in moved._samples) == pytest.approx(SAMPLE_SIZE, rel=0.15)
    with torch.no_grad():
        model.weight[:256] += 1.0
    assert moved.share() == pytest.approx(0.25, abs=0.01)


def test_a_change_too_small_for_bf16_is_no_movement():
    model = nn.Linear(8, 8, bias=False).to(torch.bfloat16)
    moved = MovedShare(model, random_mask(model, 1.0))
    with torch.no_grad():
        model.weight.mul_(1.0001)
    assert moved.share() == 0.0


def test_parameters_outside_the_mask_are_not_watched(model):
    mask = WeightMask.from_dense({"0.weight": torch.ones(17, 33, dtype=torch.bool)})
    moved = MovedShare(model, mask)
    with torch.no_grad():
        model[1].weight.add_(1.0)
    assert moved.share() == 0.0
