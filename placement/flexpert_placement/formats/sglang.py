"""What SGLang reads with `--init-expert-location FILE.json`.

The form is that of `python/sglang/srt/eplb/expert_location.py` (commit 01fec5c): an object with the one key
`physical_to_logical_map`, [layers, physical experts], the logical expert in every physical slot. Its keys become the
arguments of `ExpertLocationMetadata.init_by_mapping`, so there may be no other. The rows are those of *all* layers of
the model (`num_hidden_layers`), dense ones included, whose rows nothing reads. Slots go to the devices in order, as
many to each, and there are as many as logical experts plus `--ep-num-redundant-experts`. The file's name ends in
`.json`.
"""

import json
from collections.abc import Collection

import numpy as np

from flexpert_placement.formats.errors import InvalidPlacementFile
from flexpert_placement.formats.physical import PhysicalMap
from flexpert_placement.instance import Ints

KEY = "physical_to_logical_map"


def dumps(physical: PhysicalMap, dense_layers: Collection[int] = ()) -> str:
    """The file's text.

    Args:
        physical: Slots of the MoE layers.
        dense_layers: Layers of the model, 0-based, that have no experts.
    """
    rows = iter(physical.experts.reshape(len(physical.experts), -1).tolist())
    width = physical.experts.shape[1] * physical.experts.shape[2]
    trivial = [slot % physical.num_experts for slot in range(width)]
    total = len(physical.experts) + len(dense_layers)
    return json.dumps({KEY: [trivial if layer in dense_layers else next(rows) for layer in range(total)]}) + "\n"


def loads(text: str, devices: int, dense_layers: Collection[int] = ()) -> PhysicalMap:
    """Read a file's text, as SGLang does.

    Raises:
        InvalidPlacementFile: SGLang could not use it on that many devices.
    """
    content = parsed(text)
    if list(content) != [KEY]:
        raise InvalidPlacementFile(f"it holds {', '.join(content) or 'nothing'}: SGLang reads `{KEY}` and nothing else")
    rows = [row for layer, row in enumerate(content[KEY]) if layer not in dense_layers]
    return map_of(rows, devices)


def parsed(text: str) -> dict[str, list[list[int]]]:
    """An object from JSON.

    Raises:
        InvalidPlacementFile: It is not one.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InvalidPlacementFile(f"it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidPlacementFile("it is not a JSON object")
    return content


def map_of(rows: list[list[int]], devices: int) -> PhysicalMap:
    """Rows of slots, dealt to devices in order.

    Raises:
        InvalidPlacementFile: They are not equally long, cannot be dealt, or lack an expert.
    """
    try:
        slots: Ints = np.array(rows, dtype=np.int64)
    except (ValueError, TypeError):
        raise InvalidPlacementFile("its layers have different numbers of slots, or no numbers in them") from None
    if slots.ndim != 2 or not slots.size or slots.min() < 0:
        raise InvalidPlacementFile(f"`{KEY}` is not [layers, physical experts] of expert numbers")
    if slots.shape[1] % devices:
        raise InvalidPlacementFile(f"{slots.shape[1]} physical experts cannot be dealt to {devices} devices equally")
    num_experts = int(slots.max()) + 1
    for layer, row in enumerate(slots):
        if len(missing := np.setdiff1d(np.arange(num_experts), row)):
            raise InvalidPlacementFile(f"expert {missing[0]} of layer {layer} is in no slot")
    return PhysicalMap(slots.reshape(len(slots), devices, -1), num_experts)
