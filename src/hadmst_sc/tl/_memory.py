"""Out of memory is survived: with fewer genes at a time, then in smaller windows. Neither changes the result."""

from __future__ import annotations

import numpy as np
import torch

from hadmst_sc.tl._chunk import predict_chunk
from hadmst_sc.tl._section import Maps, SharedSection, joined


def predict_within_memory(section: SharedSection, chunk: np.ndarray) -> Maps:
    """:func:`predict_chunk`, of fewer genes at a time or in smaller windows where memory does not suffice."""
    parts: list[Maps] = []
    while len(chunk):
        n = min(section.limits.genes, len(chunk))
        try:
            parts.append(predict_chunk(section, chunk[:n]))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            section.limits.lower(n)
            torch.cuda.empty_cache()  # nothing where there is no such device
        else:
            chunk = chunk[n:]
    return parts[0] if len(parts) == 1 else joined(parts)


def _out_of_memory(error: Exception) -> bool:
    """Of the processor's memory or of a device's; torch tells the former by its text alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
