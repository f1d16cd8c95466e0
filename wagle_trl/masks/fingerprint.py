"""Fingerprints that identify weights: a hash of all values, the same for a model in memory and in files."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

_PIECE = 2**20  # weights per piece, which is hashed on its own
_THREADS = 2


def fingerprint(
    dtypes: Mapping[str, torch.dtype],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str, int, int], Tensor],
) -> str:
    """
    Compute the SHA-256 of names, dtypes, shapes and all values of tensors, piece by piece.

    Args:
        dtypes (`dict[str, torch.dtype]`): Dtype to which the values of each tensor are rounded, in any order.
        shapes (`dict[str, tuple[int, ...]]`): Shape of each tensor.
        read (callable): Function of a name, a start and a stop that returns the flat values between them.

    Returns:
        `str`: 64 hexadecimal digits.
    """

    def hashed(piece: tuple[str, int, int]) -> bytes:
        values = read(*piece).to(dtypes[piece[0]]).cpu().contiguous()
        return hashlib.sha256(values.view(torch.uint8).numpy().data).digest()

    names = sorted(dtypes)
    digest = hashlib.sha256("".join(f"{name} {dtypes[name]} {tuple(shapes[name])}\n" for name in names).encode())
    # One piece is read while another is hashed; within a thread, torch starts no further threads
    with ThreadPoolExecutor(_THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for piece in pool.map(hashed, _pieces(names, shapes)):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int, int]]:
    for name in names:
        numel = math.prod(shapes[name])
        for start in range(0, numel, _PIECE):
            yield name, start, min(start + _PIECE, numel)


def fingerprint_of(weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """Compute the [`fingerprint`] of tensors, rounded to `dtype`, or by default each in its own dtype."""
    dtypes = {name: dtype or values.dtype for name, values in weights.items()}
    shapes = {name: tuple(values.shape) for name, values in weights.items()}
    return fingerprint(dtypes, shapes, lambda name, start, stop: weights[name].detach().reshape(-1)[start:stop])


def model_fingerprint(model: nn.Module) -> str:
    """Compute the [`fingerprint`] of a model's parameters in bf16: the same for the model loaded in a wider dtype."""
    return fingerprint_of(dict(model.named_parameters()), torch.bfloat16)
