"""Chunks of a long tensor, so that temporaries fit in a CPU cache and never grow with the model."""

from collections.abc import Iterator

CHUNK = 2**18
"""Elements that the specification works on at a time: at most 2 MB for an int64 temporary."""


def chunks(numel: int, size: int = CHUNK) -> Iterator[slice]:
    """Cut `numel` elements into slices of `size` elements, a multiple of 8; the last may be shorter."""
    return (slice(start, min(start + size, numel)) for start in range(0, numel, size))
