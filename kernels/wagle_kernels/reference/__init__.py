"""The specification: every op in plain PyTorch, in chunks, so that no temporary exceeds a few MB.

Tensors are contiguous and one-dimensional (a parameter is passed as `p.view(-1)`). Packed masks are uint8: bit `j` of
byte `i` stands for element `8 * i + j`, and unused bits of the last byte are zero.
"""

from .accumulation import accumulate
from .adamw import adamw
from .bits import pack, popcount, unpack
from .compaction import compress, scatter
from .scoring import add_ties, score, score_histogram, score_partition

__all__ = [
    "accumulate",
    "adamw",
    "add_ties",
    "compress",
    "pack",
    "popcount",
    "scatter",
    "score",
    "score_histogram",
    "score_partition",
    "unpack",
]
