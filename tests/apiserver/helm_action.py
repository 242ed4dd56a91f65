"""One action of Helm's library on a cluster, in a process of its own: `helm_action.py KUBECONFIG CHART VERB VALUES`.

It prints the release as JSON.
"""

import json
import sys
from typing import Any

import helm_python

RELEASE, NAMESPACE = "flexpert", "flexpert-system"


def act(config: helm_python.Config, chart: str, verb: str, values: dict[str, Any]) -> Any:
    """What the action comes to."""
    if verb == "install":
        return config.install(chart, RELEASE, values)
    if verb == "upgrade":
        return config.upgrade(chart, RELEASE, values)
    return config.uninstall(RELEASE)


def main(kubeconfig: str, chart: str, verb: str, values: str) -> None:
    """Act and print."""
    with helm_python.Config(kubeconfig_path=kubeconfig, namespace=NAMESPACE) as config:
        print(json.dumps(act(config, chart, verb, json.loads(values))))


if __name__ == "__main__":
    main(*sys.argv[1:])
