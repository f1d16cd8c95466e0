"""The share of a mask that moves: low precision and small learning rates can leave selected weights where they were."""

import torch
from torch import Tensor, nn

from ..masks.mask import WeightMask

SAMPLE_SIZE = 2**15


class MovedShare:
    """
    Share of the selected weights that differ from their values at construction.

    It is exact for up to 32,768 selected weights. Of more, about as many are sampled, evenly spaced over the scope.

    Args:
        model (`torch.nn.Module`): Model to watch.
        mask ([`WeightMask`]): Its mask.
    """

    def __init__(self, model: nn.Module, mask: WeightMask):
        # Odd, as a divisor of the row length would sample the same columns of every row
        stride = max(1, mask.num_selected // SAMPLE_SIZE) | 1
        parameters = dict(model.named_parameters())
        self._samples: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for name, bits in mask.bits.items():
            candidates = torch.arange(0, mask.numel_of(name), stride, device=bits.device)
            chosen = candidates[(bits[candidates >> 3] >> (candidates & 7) & 1).bool()].to(parameters[name].device)
            self._samples.append((parameters[name], chosen, self._values(parameters[name], chosen)))

    @staticmethod
    def _values(parameter: nn.Parameter, indices: Tensor) -> Tensor:
        return parameter.detach().view(-1)[indices]

    def share(self) -> float:
        """Measure the share, between 0 and 1."""
        moved = sum(int((self._values(p, indices) != start).sum()) for p, indices, start in self._samples)
        return moved / max(1, sum(len(indices) for _, indices, _ in self._samples))
