"""The subset of JSONPath that printer columns use: `.a.b`, `.a['b.c']`, `.a[0]`, `.a[*].b`, `.a[?(@.type=="X")].b`.

`tables` finds the cells of custom resources with it.
"""

import re
from typing import Any

_STEP = re.compile(
    r"""\.?\[\?\(\s*@\.(?P<filter>[\w.\-]+)\s*(?P<op>==|!=)\s*(?P<quote>['"]?)(?P<wanted>.*?)(?P=quote)\s*\)\]
      | \.?\[(?P<index>-?\d+)\]
      | \.?\[(?P<all>\*)\]
      | \.?\[(?P<q>['"])(?P<quoted>.*?)(?P=q)\]
      | \.(?P<star>\*)
      | \.?(?P<name>(?:\\.|[^.\[\]])+)""",
    re.VERBOSE,
)


def find(path: str, obj: Any) -> list[Any]:
    """Every value at `path` in `obj`, in order; empty when there is none."""
    found = [obj]
    for step in _STEP.finditer(path.strip().removeprefix("{").removesuffix("}").removeprefix("$")):
        found = [below for value in found for below in _follow(step, value)]
    return found


def _follow(step: re.Match[str], value: Any) -> list[Any]:
    if step["filter"]:
        return [item for item in _members(value) if _passes(step, item)]
    if step["all"] or step["star"]:
        return _members(value)
    if step["index"]:
        index = int(step["index"])
        return [value[index]] if isinstance(value, list) and -len(value) <= index < len(value) else []
    name = step["quoted"] if step["quoted"] is not None else step["name"].replace("\\.", ".")
    return [value[name]] if isinstance(value, dict) and name in value else []


def _members(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return list(value.values()) if isinstance(value, dict) else []


def _passes(step: re.Match[str], item: Any) -> bool:
    for name in step["filter"].split("."):
        item = item.get(name) if isinstance(item, dict) else None
    text = str(item).lower() if isinstance(item, bool) else str(item)
    return (text == step["wanted"]) == (step["op"] == "==")
