"""Models that differ from others in the weights of a random mask."""

import copy

import torch

from wagle_trl import WeightMask
from wagle_trl.files.tensor_file import bit_patterns
from wagle_trl.masks.info import MaskInfo


def unlearned(base, density=0.05, seed=0, names=None):
    """A copy of `base` with some weights changed, and the mask of them."""
    generator = torch.Generator().manual_seed(seed)
    model, masks = copy.deepcopy(base), {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if names is None or name in names:
                masks[name] = torch.rand(parameter.shape, generator=generator) < density
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += (masks[name] * noise).to(parameter.dtype)
    info = MaskInfo(score="random", base_model="user/base", base_revision="main")
    return model, WeightMask.from_dense(masks, info)


def same_weights(model, other):
    return all(
        torch.equal(bit_patterns(a), bit_patterns(b))
        for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
