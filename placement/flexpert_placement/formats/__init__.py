"""Placements as other engines write them down; `flexpert plan --format sglang|vllm` and `--from-placement` use it."""

from flexpert_placement.formats.errors import InvalidPlacementFile
from flexpert_placement.formats.physical import PhysicalMap, even_imbalance, physical_map, solve_layerwise

__all__ = ["InvalidPlacementFile", "PhysicalMap", "even_imbalance", "physical_map", "solve_layerwise"]
