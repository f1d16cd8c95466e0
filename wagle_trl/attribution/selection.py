"""Scores and a density to the exact global top-k, as a `WeightMask`. No sort of all scores, no copy of them.

A sample of the scores brackets the k-th largest. One pass over the data sets the bits of all scores above the bracket
and collects the few inside, which are ranked; so the data are read about once. Where the bracket misses, or too many
scores are equal, a radix selection finds the exact key, and the pass is made again with a bracket of that one key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

import wagle_kernels
from wagle_kernels import NON_FINITE_KEY, TILE, Candidates, ScoreSpec

from ..masks.info import MaskInfo
from ..masks.mask import WeightMask

_ALWAYS_RANKED = 2**16  # up to so many scores are all ranked, and so many ties at least
_SIGMAS = 5  # how far the bracket reaches beyond the sample's own k-th score


@dataclass(frozen=True)
class Piece:
    """
    A parameter's share of a scope.

    Args:
        name (`str`): Parameter name.
        offset (`int`): Global index of its first weight.
        theta (`torch.Tensor` of shape `(numel,)`): Weights.
        scored ([`Scored`]): The scope.
    """

    name: str
    offset: int
    theta: Tensor
    scored: "Scored"

    @property
    def numel(self) -> int:
        return self.theta.numel()

    def read(self, stride: int = 1) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Every `stride`-th weight and its statistics, flat, on the device of the weights, wherever they are kept."""
        forget, retain = (self._statistic(kept, stride) for kept in (self.scored.forget, self.scored.retain))
        return self.theta[::stride], forget, retain

    def _statistic(self, kept: Mapping[str, Tensor] | None, stride: int) -> Tensor | None:
        if kept is None:
            return None
        # A copy of a sample: a view would hold all of a file's mapping
        statistic = kept[self.name].view(-1)[::stride].contiguous().to(self.theta.device)
        return statistic.sqrt() if self.scored.root else statistic


@dataclass(frozen=True)
class Scored:
    """
    A score over a scope, evaluated chunk by chunk wherever it is read and never stored.

    Args:
        parameters (`dict[str, torch.Tensor]`): Weights in scope, in model order.
        spec ([`wagle_kernels.ScoreSpec`]): Formula, scale and seed.
        forget, retain (mapping of `str` to `torch.Tensor`, *optional*):
            fp32 statistics of the same shapes, where the formula reads them; on any device, one parameter at a time
            is moved to that of the weights.
        root (`bool`, *optional*, defaults to `False`): Whether the formula reads the square roots of the statistics.
    """

    parameters: Mapping[str, Tensor]
    spec: ScoreSpec
    forget: Mapping[str, Tensor] | None = None
    retain: Mapping[str, Tensor] | None = None
    root: bool = False

    @cached_property
    def pieces(self) -> list[Piece]:
        """The parameters, flat."""
        pieces, offset = [], 0
        for name, parameter in self.parameters.items():
            pieces.append(Piece(name, offset, parameter.detach().reshape(-1), self))
            offset += parameter.numel()
        return pieces

    @cached_property
    def numel(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def by_device(self) -> list[list[Piece]]:
        """Pieces on each device."""
        groups: dict[torch.device, list[Piece]] = {}
        for piece in self.pieces:
            groups.setdefault(piece.theta.device, []).append(piece)
        return list(groups.values())

    def sample(self, stride: int) -> Tensor:
        """Scores of every `stride`-th weight, in falling order."""
        scores = []
        for pieces in self.by_device():
            theta, *statistics = zip(*(piece.read(stride) for piece in pieces))
            forget, retain = (None if parts[0] is None else torch.cat(parts) for parts in statistics)
            found = wagle_kernels.score(torch.cat(theta), forget, retain, self.spec)
            scores.append(found.to(self.pieces[0].theta.device))
        return torch.cat(scores).sort(descending=True).values

    def refuse_non_finite(self) -> None:
        """Raise a `ValueError` that names the first parameter with a NaN or infinite score."""
        for piece in self.pieces:
            if not wagle_kernels.score(*piece.read(), self.spec, offset=piece.offset).isfinite().all():
                raise ValueError(
                    f"The score of '{piece.name}' is NaN or infinite: its weights or gradients are. Check the model "
                    "and the data, or load the model in bfloat16 or float32."
                )


class Cut:
    """
    One pass over the pieces on one device: bits of the keys above the bracket, candidates from inside.

    Args:
        pieces (`list[Piece]`): Pieces on one device.
        candidates ([`~wagle_kernels.Candidates`]): The bracket, with room for the candidates.
    """

    def __init__(self, pieces: list[Piece], candidates: Candidates):
        self.pieces = pieces
        self.candidates = candidates
        device = candidates.codes.device
        # One tensor for the bits of all parameters, so that candidates of all are selected at once
        sizes = [(piece.numel + 7) // 8 for piece in pieces]
        self._packed = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        self.bits = self._packed.split(sizes)
        self._inside = [torch.empty((p.numel + TILE - 1) // TILE, dtype=torch.int32, device=device) for p in pieces]
        for piece, bits, inside in zip(pieces, self.bits, self._inside):
            wagle_kernels.score_partition(
                bits, inside, candidates, *piece.read(), piece.scored.spec, offset=piece.offset
            )
        self.num_above, self.num_inside, self.largest = candidates.counts.tolist()

    @property
    def is_complete(self) -> bool:
        """Whether every key inside the bracket is a candidate."""
        return self.num_inside <= self.candidates.codes.numel()

    @property
    def codes(self) -> Tensor:
        """The candidates."""
        return self.candidates.codes[: self.num_inside]

    def take(self, last: int) -> None:
        """Select the candidates up to the code `last`."""
        positions = self.candidates.positions_of(self.codes[self.codes <= last])
        offsets = torch.tensor([piece.offset for piece in self.pieces], device=positions.device)
        starts = torch.tensor([0] + [8 * bits.numel() for bits in self.bits[:-1]], device=positions.device).cumsum(0)
        owner = torch.bucketize(positions, offsets, right=True) - 1
        place = positions + (starts - offsets)[owner]
        self._packed.index_add_(0, place >> 3, (1 << (place & 7)).to(torch.uint8))

    def take_ties(self, piece: int, key: int, ties: int) -> int:
        """Select the first `ties` keys of a piece that equal `key`, the bracket's only one; how many there were."""
        tied, bits, inside = self.pieces[piece], self.bits[piece], self._inside[piece]
        spec = tied.scored.spec
        wagle_kernels.add_ties(bits, inside, *tied.read(), spec, key=key, ties=ties, offset=tied.offset)
        return min(ties, int(inside.sum()))


def num_to_select(density: float, numel: int) -> int:
    """`round(density * numel)`; a `ValueError` if the density is not in (0, 1] or selects nothing."""
    if not 0 < density <= 1:
        raise ValueError(f"mask_density must be in (0, 1], got {density}.")
    k = round(density * numel)
    if k == 0:
        raise ValueError(f"mask_density {density} of {numel} weights selects none; raise it.")
    return k


def select(scored: Scored, density: float, info: MaskInfo | None = None) -> WeightMask:
    """
    Select the `round(density * numel)` weights with the largest scores over the whole scope.

    Equal scores: the earlier parameter wins, then the lower flat index; so the mask has exactly that many bits and is
    the same for any chunking and device.

    Args:
        scored ([`Scored`]): What to rank.
        density (`float`): Share to select, in (0, 1].
        info ([`~masks.info.MaskInfo`], *optional*): Carried by the mask; the threshold is added.

    Returns:
        [`WeightMask`]: On the device of each parameter.
    """
    k = num_to_select(density, scored.numel)
    cuts = _cut(scored, *bracket(scored, k))
    if max(cut.largest for cut in cuts) >= NON_FINITE_KEY:
        scored.refuse_non_finite()
    rank = k - sum(cut.num_above for cut in cuts)
    is_held = 0 < rank <= sum(cut.num_inside for cut in cuts)
    if is_held and all(cut.is_complete for cut in cuts):
        key = _take_candidates(cuts, rank)
    else:
        key, ties = cuts[0].candidates.high, rank
        if not (is_held and key == cuts[0].candidates.low):
            del cuts  # before the second pass makes as many again
            key, ties = find_threshold(scored, k)
            cuts = _cut(scored, key, key, capacity=0)
        _take_ties(cuts, key, ties)
    bits = {piece.name: bits for cut in cuts for piece, bits in zip(cut.pieces, cut.bits)}
    shapes = {name: tuple(parameter.shape) for name, parameter in scored.parameters.items()}
    value = torch.tensor(key, dtype=torch.int32).view(torch.float32).item()
    info = replace(info or MaskInfo(), threshold=value)
    return WeightMask({name: bits[name] for name in shapes}, shapes, info)


def bracket(scored: Scored, k: int) -> tuple[int, int, int]:
    """
    Keys between which the k-th largest score very probably lies, and room for the scores between them.

    The sample grows with the two-thirds power of the scope, which balances the work of sorting it against that of
    ranking the candidates.

    Args:
        scored ([`Scored`]): What to rank.
        k (`int`): How many to select.

    Returns:
        `tuple[int, int, int]`: Lowest key, highest key, capacity.
    """
    if scored.numel <= _ALWAYS_RANKED:
        return 0, NON_FINITE_KEY - 1, _ALWAYS_RANKED
    stride = round(scored.numel ** (1 / 3)) | 1  # odd, so that it does not fall in step with a row length
    keys = scored.sample(stride).view(torch.int32)
    density = k / scored.numel
    margin = _SIGMAS * ((len(keys) * density * (1 - density)) ** 0.5 + 1)
    first, last = round(len(keys) * density - margin), round(len(keys) * density + margin)
    low = int(keys[last]) if last < len(keys) else 0
    high = int(keys[first]) if first >= 0 else NON_FINITE_KEY - 1
    return low, min(high, NON_FINITE_KEY - 1), _ALWAYS_RANKED + round(3 * margin * stride)


def _cut(scored: Scored, low: int, high: int, capacity: int) -> list[Cut]:
    """One pass over all devices, with room for `capacity` candidates on each."""
    cuts = []
    for pieces in scored.by_device():
        room = min(capacity, sum(piece.numel for piece in pieces))
        candidates = Candidates.allocate(low, high, scored.numel, room, pieces[0].theta.device)
        cuts.append(Cut(pieces, candidates))
    return cuts


def _take_candidates(cuts: list[Cut], rank: int) -> int:
    """Select the `rank` candidates that come first, and return the key of the last of them."""
    codes = torch.cat([cut.codes.to(cuts[0].codes.device) for cut in cuts])
    # On a GPU `kthvalue` works on one multiprocessor, and is refused where determinism is asked for
    last = int(codes.sort().values[rank - 1] if codes.is_cuda else codes.kthvalue(rank).values)
    for cut in cuts:
        cut.take(last)
    return cuts[0].candidates.key_of(last)


def _take_ties(cuts: list[Cut], key: int, ties: int) -> None:
    """Select the first `ties` scores of a key, in model order."""
    places = [(cut, i) for cut in cuts for i in range(len(cut.pieces))]
    for cut, piece in sorted(places, key=lambda place: place[0].pieces[place[1]].offset):
        if ties:
            ties -= cut.take_ties(piece, key, ties)


def find_threshold(scored: Scored, k: int) -> tuple[int, int]:
    """
    Exact key of the k-th largest score by radix selection: a histogram of the highest digit of all keys, then of the
    next digit of those that share it, until the key is complete.

    Args:
        scored ([`Scored`]): What to rank.
        k (`int`): How many to select.

    Returns:
        `tuple[int, int]`: The key, and how many of the scores that have it belong to the k.
    """
    bits = min(wagle_kernels.digit_bits(pieces[0].theta.device) for pieces in scored.by_device())
    prefix, remaining = 0, k
    for shift in range(32 - bits, -1, -bits):
        counts = _histogram(scored, bits, shift, prefix)
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= remaining).nonzero()[-1])
        remaining -= int(at_least[digit] - counts[digit])
        prefix = prefix << bits | digit
    return prefix, remaining


def _histogram(scored: Scored, bits: int, shift: int, prefix: int) -> Tensor:
    """Counts of the key digit at `shift` among the keys that start with `prefix`, over the whole scope."""
    total = torch.zeros(2**bits, dtype=torch.int64)
    for pieces in scored.by_device():
        counts = torch.zeros_like(total, device=pieces[0].theta.device)
        for piece in pieces:
            wagle_kernels.score_histogram(
                counts, *piece.read(), scored.spec, shift=shift, prefix=prefix, offset=piece.offset
            )
        total += counts.cpu()
    return total
