"""`flexpert crds`: brings a cluster's CustomResourceDefinitions to this version; Helm never upgrades them."""

import argparse
import time
from collections.abc import Mapping
from typing import Any

from flexpert_operator.cli import access
from flexpert_operator.cli.errors import CliError
from flexpert_operator.crds import crd_folder, load_crds
from flexpert_operator.errors import KubeNotFound
from flexpert_operator.kube import Kube, Object

FIELD_MANAGER = "flexpert-crds"
ESTABLISHED_S = 30.0
_POLL_S = 0.2
_APPLY_PATCH = "application/apply-patch+yaml"
_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("crds", help="show or upgrade the CustomResourceDefinitions")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    show = verbs.add_parser("show", help="print them as YAML, for kubectl or Git")
    show.set_defaults(run=run_show)
    upgrade = verbs.add_parser("apply", help="create or upgrade them in the cluster; do this before `helm upgrade`")
    upgrade.add_argument("--dry-run", action="store_true", help="have the API server check them, and change nothing")
    access.add_options(upgrade)
    upgrade.set_defaults(run=run_apply)


def run_show(options: argparse.Namespace) -> int:
    """Print them."""
    print("---\n".join(file.read_text() for file in sorted(crd_folder().glob("*.yaml"))), end="")
    return 0


def run_apply(options: argparse.Namespace) -> int:
    """Create or upgrade every one, and wait until it is served."""
    kube = access.connect(options)
    for crd in load_crds():
        print(f"customresourcedefinition/{crd['metadata']['name']} {upgrade_crd(kube, crd, options.dry_run)}")
    return 0


def upgrade_crd(kube: Kube, crd: Mapping[str, Any], dry_run: bool) -> str:
    """Make a CRD be as given, whoever wrote it before; what was done, in a word.

    Raises:
        CliError: Objects are stored in a version that it does not have any more, or it is not served in time.
    """
    name = crd["metadata"]["name"]
    live = find_crd(kube, name)
    check_stored_versions(live, crd)
    query = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
    query |= {"dryRun": "All"} if dry_run else {}
    applied = kube.request("PATCH", f"{_PATH}/{name}", crd, query, _APPLY_PATCH)
    if not dry_run:
        wait_until_served(kube, name)
    done = "unchanged" if live is not None and live["spec"] == applied["spec"] else "upgraded" if live else "created"
    return f"would be {done}" if dry_run else done


def find_crd(kube: Kube, name: str) -> Object | None:
    """The CRD as the cluster has it, or None."""
    try:
        return kube.request("GET", f"{_PATH}/{name}")
    except KubeNotFound:
        return None


def check_stored_versions(live: Mapping[str, Any] | None, crd: Mapping[str, Any]) -> None:
    """See to it that objects can be read after the upgrade.

    Raises:
        CliError: Some are stored in a version that goes.
    """
    stored = set(((live or {}).get("status") or {}).get("storedVersions") or ())
    gone = sorted(stored - {version["name"] for version in crd["spec"]["versions"]})
    if gone:
        name = crd["metadata"]["name"]
        raise CliError(
            f"{name}: objects are stored as {', '.join(gone)}, which this version does not know: upgrade to a version "
            f"in between, rewrite the objects (`kubectl get … -o yaml | kubectl replace -f -`), take {', '.join(gone)} "
            "out of status.storedVersions, then come back"
        )


def wait_until_served(kube: Kube, name: str) -> None:
    """Wait for the condition Established.

    Raises:
        CliError: It does not come in time; the message has the API server's words.
    """
    deadline = time.monotonic() + ESTABLISHED_S
    while True:
        conditions = ((find_crd(kube, name) or {}).get("status") or {}).get("conditions") or ()
        if any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
            return
        if time.monotonic() > deadline:
            words = "; ".join(str(one.get("message", "")) for one in conditions if one["status"] == "False")
            raise CliError(
                f"{name} was not established within {ESTABLISHED_S:.0f} s: {words or 'no condition says why'}"
            )
        time.sleep(_POLL_S)
