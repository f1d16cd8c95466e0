"""The ops of the specification as Triton kernels: same names, same signatures, one kernel family per file.

Tensors are read as tiles of rows of eight elements, so that a thread with one row loads eight bf16 weights at once and
one byte of a mask. Offsets within a tile are int32. The offset of the tile is an int64 that is added to the pointer.
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
