"""Helm's own engine behind pipes: reads requests as lines of JSON and answers each with a line; `conftest` starts it.

A process of its own, since the engine is a Go library with threads and signal handlers that tests should not have.
"""

import json
import sys
from typing import Any

import helm_python


def answer(chart: helm_python.Chart, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a request comes to: rendered files, findings of the linter, or why the values were refused."""
    try:
        if request["verb"] == "lint":
            return {"lint": helm_python.lint(path, request["values"], strict=True)}
        rendered = chart.render(
            request["values"], name=request["name"], namespace=request["namespace"], is_upgrade=request["upgrade"]
        )
    except helm_python.HelmError as error:
        return {"refusal": str(error)}
    return {"files": rendered}


def main(path: str) -> None:
    """Answer until the input ends."""
    with helm_python.Chart.load(path) as chart:
        for line in sys.stdin:
            print(json.dumps(answer(chart, path, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
