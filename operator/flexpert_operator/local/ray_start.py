"""`python -m flexpert_operator.local.ray_start start …`: the `ray` command, with what a laptop never uses left out.

Ray's command line imports Serve, jobs and the state API for subcommands of its own, and goes on without those that
cannot be imported. A head starts its web server even when told to do without the dashboard, and waits for it. Left
out, nodes start in half the processor time; see also `ray_minimal`.
"""

import importlib
import sys
from typing import Any

_UNUSED = ("ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli")


def main() -> None:
    """Run the command line of this process as `ray`'s."""
    for name in _UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say that it cannot be imported
    importlib.import_module("ray._private.node").Node.start_api_server = _start_no_api_server
    importlib.import_module("ray.scripts.scripts").main()


def _start_no_api_server(node: Any, **_: object) -> None:
    node._webui_url = None


if __name__ == "__main__":
    main()
