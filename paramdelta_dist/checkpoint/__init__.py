"""Model folders, known from their headers alone, and whether several of them fit together. Knows no recipe and no plan."""

from paramdelta_dist.checkpoint.adapter import open_adapters
from paramdelta_dist.checkpoint.checkpoint import Checkpoint, find_side_files, open_checkpoint, open_checkpoints
from paramdelta_dist.checkpoint.header import Tensor, WeightFile
from paramdelta_dist.checkpoint.homology import HomologyReport, Mismatch, compare

__all__ = [
    "Checkpoint",
    "HomologyReport",
    "Mismatch",
    "Tensor",
    "WeightFile",
    "compare",
    "find_side_files",
    "open_adapters",
    "open_checkpoint",
    "open_checkpoints",
]
