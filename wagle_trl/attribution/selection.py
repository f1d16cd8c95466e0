"""Exact global top-k: scores and a density to a `WeightMask`, without sorting or copying all scores.

A sample of the scores gives a bracket for the k-th largest score. One pass over the data sets the mask bits of all
scores above the bracket and collects the few scores inside it, which are then ranked. So the data are read about once.
If the k-th score lies outside the bracket, or too many scores are equal, a radix selection finds its exact key. The
pass is then repeated with a bracket of that one key.
"""

from dataclasses import replace

import torch
from torch import Tensor

import wagle_kernels
from wagle_kernels import NON_FINITE_KEY, TILE, Candidates

from ..masks.info import MaskInfo
from ..masks.mask import WeightMask
from .lazy_scores import LazyScores, Piece

_ALWAYS_RANKED = 2**16  # a scope of up to this many weights is ranked whole; there is room for at least as many ties
_SIGMAS = 5  # half-width of the bracket around the sample's k-th score, in standard deviations


class Partition:
    """
    Result of one pass over the pieces on one device: mask bits of the keys above the bracket, and the candidates, which
    are the keys inside it.

    Args:
        pieces (`list[Piece]`): Pieces on one device.
        candidates ([`~wagle_kernels.Candidates`]): The bracket, with room for the candidates.
    """

    def __init__(self, pieces: list[Piece], candidates: Candidates):
        self.pieces = pieces
        self.candidates = candidates
        device = candidates.codes.device
        # The bits of all parameters share one tensor, so that one operation selects candidates in all of them
        sizes = [(piece.numel + 7) // 8 for piece in pieces]
        self._packed = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        self.bits = self._packed.split(sizes)
        self._inside = [torch.empty((p.numel + TILE - 1) // TILE, dtype=torch.int32, device=device) for p in pieces]
        for piece, bits, inside in zip(pieces, self.bits, self._inside):
            wagle_kernels.score_partition(
                bits, inside, candidates, *piece.read(), piece.scores.spec, offset=piece.offset
            )
        self.num_above, self.num_inside, self.largest = candidates.counts.tolist()

    @property
    def is_complete(self) -> bool:
        """Whether every key inside the bracket is a candidate."""
        return self.num_inside <= self.candidates.codes.numel()

    @property
    def codes(self) -> Tensor:
        """Codes of the candidates."""
        return self.candidates.codes[: self.num_inside]

    def select_up_to(self, last: int) -> None:
        """Select the candidates whose code is at most `last`."""
        positions = self.candidates.positions_of(self.codes[self.codes <= last])
        offsets = torch.tensor([piece.offset for piece in self.pieces], device=positions.device)
        starts = torch.tensor([0] + [8 * bits.numel() for bits in self.bits[:-1]], device=positions.device).cumsum(0)
        owner = torch.bucketize(positions, offsets, right=True) - 1
        place = positions + (starts - offsets)[owner]
        self._packed.index_add_(0, place >> 3, (1 << (place & 7)).to(torch.uint8))

    def select_ties(self, piece: int, key: int, ties: int) -> int:
        """Select the first `ties` keys of a piece that equal `key`, the only key of the bracket; return their number."""
        tied, bits, inside = self.pieces[piece], self.bits[piece], self._inside[piece]
        spec = tied.scores.spec
        wagle_kernels.add_ties(bits, inside, *tied.read(), spec, key=key, ties=ties, offset=tied.offset)
        return min(ties, int(inside.sum()))


def num_to_select(density: float, numel: int) -> int:
    """`round(density * numel)`. Raise a `ValueError` if the density is not in (0, 1] or selects nothing."""
    if not 0 < density <= 1:
        raise ValueError(f"mask_density must be in (0, 1], got {density}.")
    k = round(density * numel)
    if k == 0:
        raise ValueError(f"mask_density {density} of {numel} weights selects none; raise it.")
    return k


def select(scores: LazyScores, density: float, info: MaskInfo | None = None) -> WeightMask:
    """
    Select the `round(density * numel)` weights with the largest scores over the whole scope.

    Among equal scores the earlier parameter wins, then the lower flat index. So the mask has exactly that many bits,
    and it is the same for any chunking and device.

    Args:
        scores ([`~attribution.lazy_scores.LazyScores`]): Scores to rank.
        density (`float`): Share of the weights to select, in (0, 1].
        info ([`~masks.info.MaskInfo`], *optional*): Information that the mask records; the threshold is added.

    Returns:
        [`WeightMask`]: The mask, with the bits of each parameter on its device.
    """
    k = num_to_select(density, scores.numel)
    partitions = _partition(scores, *bracket(scores, k))
    if max(partition.largest for partition in partitions) >= NON_FINITE_KEY:
        scores.check_finite()
    rank = k - sum(partition.num_above for partition in partitions)
    is_bracketed = 0 < rank <= sum(partition.num_inside for partition in partitions)
    if is_bracketed and all(partition.is_complete for partition in partitions):
        key = _select_candidates(partitions, rank)
    else:
        key, ties = partitions[0].candidates.high, rank
        if not (is_bracketed and key == partitions[0].candidates.low):
            del partitions  # their memory is free before the second pass allocates as much again
            key, ties = find_threshold(scores, k)
            partitions = _partition(scores, key, key, capacity=0)
        _select_ties(partitions, key, ties)
    bits = {piece.name: bits for partition in partitions for piece, bits in zip(partition.pieces, partition.bits)}
    shapes = {name: tuple(parameter.shape) for name, parameter in scores.parameters.items()}
    threshold = torch.tensor(key, dtype=torch.int32).view(torch.float32).item()
    return WeightMask({name: bits[name] for name in shapes}, shapes, replace(info or MaskInfo(), threshold=threshold))


def bracket(scores: LazyScores, k: int) -> tuple[int, int, int]:
    """
    Two keys that very probably enclose the k-th largest score, and a capacity for the scores between them.

    The sample grows with the two-thirds power of the scope. This balances the work of sorting the sample against that
    of ranking the candidates.

    Args:
        scores ([`~attribution.lazy_scores.LazyScores`]): Scores to rank.
        k (`int`): Number of weights to select.

    Returns:
        `tuple[int, int, int]`: Lowest key, highest key, capacity.
    """
    if scores.numel <= _ALWAYS_RANKED:
        return 0, NON_FINITE_KEY - 1, _ALWAYS_RANKED
    stride = round(scores.numel ** (1 / 3)) | 1  # odd, so that the sample does not fall into a few columns of a matrix
    keys = scores.sample(stride).view(torch.int32)
    density = k / scores.numel
    margin = _SIGMAS * ((len(keys) * density * (1 - density)) ** 0.5 + 1)
    first, last = round(len(keys) * density - margin), round(len(keys) * density + margin)
    low = int(keys[last]) if last < len(keys) else 0
    high = int(keys[first]) if first >= 0 else NON_FINITE_KEY - 1
    return low, min(high, NON_FINITE_KEY - 1), _ALWAYS_RANKED + round(3 * margin * stride)


def _partition(scores: LazyScores, low: int, high: int, capacity: int) -> list[Partition]:
    """Make one pass over all pieces, with room for `capacity` candidates per device."""
    partitions = []
    for pieces in scores.by_device():
        room = min(capacity, sum(piece.numel for piece in pieces))
        candidates = Candidates.allocate(low, high, scores.numel, room, pieces[0].theta.device)
        partitions.append(Partition(pieces, candidates))
    return partitions


def _select_candidates(partitions: list[Partition], rank: int) -> int:
    """Select the first `rank` candidates, and return the key of the last of them."""
    codes = torch.cat([partition.codes.to(partitions[0].codes.device) for partition in partitions])
    # On a GPU `kthvalue` runs on one multiprocessor, and deterministic mode refuses it
    last = int(codes.sort().values[rank - 1] if codes.is_cuda else codes.kthvalue(rank).values)
    for partition in partitions:
        partition.select_up_to(last)
    return partitions[0].candidates.key_of(last)


def _select_ties(partitions: list[Partition], key: int, ties: int) -> None:
    """Select the first `ties` scores that have a key, in model order."""
    places = [(partition, i) for partition in partitions for i in range(len(partition.pieces))]
    for partition, piece in sorted(places, key=lambda place: place[0].pieces[place[1]].offset):
        if ties:
            ties -= partition.select_ties(piece, key, ties)


def find_threshold(scores: LazyScores, k: int) -> tuple[int, int]:
    """
    Exact key of the k-th largest score, by radix selection. The first histogram counts the highest digit of all keys;
    each further one counts the next digit of the keys that share the digits found so far.

    Args:
        scores ([`~attribution.lazy_scores.LazyScores`]): Scores to rank.
        k (`int`): Number of weights to select.

    Returns:
        `tuple[int, int]`: The key, and how many of the scores with this key are among the k largest.
    """
    bits = min(wagle_kernels.digit_bits(pieces[0].theta.device) for pieces in scores.by_device())
    prefix, remaining = 0, k
    for shift in range(32 - bits, -1, -bits):
        counts = _histogram(scores, bits, shift, prefix)
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= remaining).nonzero()[-1])
        remaining -= int(at_least[digit] - counts[digit])
        prefix = prefix << bits | digit
    return prefix, remaining


def _histogram(scores: LazyScores, bits: int, shift: int, prefix: int) -> Tensor:
    """Histogram of the key digit at `shift` over all keys of the scope that start with `prefix`."""
    total = torch.zeros(2**bits, dtype=torch.int64)
    for pieces in scores.by_device():
        counts = torch.zeros_like(total, device=pieces[0].theta.device)
        for piece in pieces:
            wagle_kernels.score_histogram(
                counts, *piece.read(), scores.spec, shift=shift, prefix=prefix, offset=piece.offset
            )
        total += counts.cpu()
    return total
