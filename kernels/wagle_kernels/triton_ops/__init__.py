"""The ops of `wagle_kernels.reference` as Triton kernels: same names, same signatures, one kernel family a file.

Tensors are read as tiles of rows of eight elements: a thread that owns a row loads eight bf16 weights at once and one
byte of a mask. Offsets inside a tile are int32, the tile's own offset is an int64 added to the pointer.
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
