"""Static expert maps for vLLM.

vLLM itself (0.9 to 0.32) reads no placement from a file; pull requests that would have it do so (41141, 53022) are
open. What it works with is `physical_to_logical_map`, `logical_to_physical_map` and `logical_replica_count` of
`vllm.distributed.eplb.eplb_state.EplbModelState`, by MoE layer, as an `AbstractEplbPolicy` answers. vLLM Ascend (0.11
to 0.18) reads a file, `expert_map_path` of its `eplb_config`: the experts of every device for every MoE layer. The file
written here is that one, with vLLM's three tensors beside it; vLLM Ascend looks at its own two keys only.
"""

import json

import numpy as np

from flexpert_placement.formats.errors import InvalidPlacementFile
from flexpert_placement.formats.physical import PhysicalMap
from flexpert_placement.formats.sglang import KEY, map_of, parsed


def dumps(physical: PhysicalMap) -> str:
    """The file's text."""
    layers, devices, _ = physical.experts.shape
    content = {
        "moe_layer_count": layers,
        "layer_list": [
            {
                "layer_id": layer,
                "device_count": devices,
                "device_list": [
                    {"device_id": device, "device_expert": experts.tolist()}
                    for device, experts in enumerate(physical.experts[layer])
                ],
            }
            for layer in range(layers)
        ],
        KEY: physical.experts.reshape(layers, -1).tolist(),
        "logical_to_physical_map": logical_to_physical(physical),
        "logical_replica_count": physical.copies().sum(axis=2).tolist(),
    }
    return json.dumps(content) + "\n"


def logical_to_physical(physical: PhysicalMap) -> list[list[list[int]]]:
    """[layers, experts, redundant + 1] the slots of each expert, ascending, then -1."""
    width = physical.num_redundant + 1
    layers = []
    for row in physical.experts.reshape(len(physical.experts), -1):
        slots = [np.flatnonzero(row == expert).tolist() for expert in range(physical.num_experts)]
        layers.append([[*found, *[-1] * (width - len(found))] for found in slots])
    return layers


def loads(text: str) -> PhysicalMap:
    """Read a file's text, as vLLM Ascend does.

    Raises:
        InvalidPlacementFile: It could not use it.
    """
    content = parsed(text)
    try:
        layers: list[list[list[int]]] = [
            [device["device_expert"] for device in layer["device_list"]]  # type: ignore[call-overload]
            for layer in content["layer_list"]
        ]
        count = int(content["moe_layer_count"])  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError):
        raise InvalidPlacementFile(
            "it lacks `moe_layer_count` or `layer_list` with devices and their experts"
        ) from None
    if count != len(layers) or not layers or not layers[0]:
        raise InvalidPlacementFile(f"`moe_layer_count` is {count}, `layer_list` has {len(layers)} layers")
    if len({len(experts) for devices in layers for experts in devices}) != 1 or len({*map(len, layers)}) != 1:
        raise InvalidPlacementFile("its devices have different numbers of experts")
    return map_of([[expert for experts in devices for expert in experts] for devices in layers], len(layers[0]))
