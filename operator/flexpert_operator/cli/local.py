"""`flexpert local up|down|status`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.tables import table
from flexpert_operator.local.down import down
from flexpert_operator.local.layout import state_layout
from flexpert_operator.local.status import local_status, pages
from flexpert_operator.local.up import default_volumes, up

DRAIN_S = 60.0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands of the laptop cluster."""
    parser = commands.add_parser("local", help="run a Kubernetes API, the operator and the pool on this host")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("up", run_up, "start the laptop cluster"),
        ("down", run_down, "stop it and everything that it runs"),
        ("status", run_status, "show its processes"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("--state-dir", help="state folder (default: .flexpert)")
        action.set_defaults(run=run)
        if name == "up":
            action.add_argument(
                "--volume",
                action="append",
                default=[],
                metavar="CLAIM=FOLDER",
                help="serve pvc://CLAIM/… from FOLDER (default: models from the checkout's examples)",
            )
        if name == "down":
            action.add_argument("--timeout", type=float, default=DRAIN_S, help="seconds for MoEDeployments to drain")
        if name == "status":
            action.add_argument("-o", "--output", choices=["json"])


def run_up(options: argparse.Namespace) -> int:
    """Start what does not run."""
    layout = state_layout(options.state_dir)
    started = up(layout, default_volumes() | _volumes(options.volume))
    print(f"started {', '.join(started)}" if started else "already up")
    print(f"export KUBECONFIG={layout.kubeconfig}")
    return 0


def _volumes(arguments: list[str]) -> dict[str, Path]:
    volumes = {}
    for argument in arguments:
        claim, separator, folder = argument.partition("=")
        if not (claim and separator and folder) or "/" in claim:
            raise CliError(f"--volume {argument}: write CLAIM=FOLDER")
        volumes[claim] = Path(folder)
    return volumes


def run_down(options: argparse.Namespace) -> int:
    """Stop everything."""
    ran = down(state_layout(options.state_dir), options.timeout, lambda line: print(line, flush=True))
    print("down" if ran else "nothing was up")
    return 0


def run_status(options: argparse.Namespace) -> int:
    """Show what runs; 1 when the cluster is not whole."""
    layout = state_layout(options.state_dir)
    found = local_status(layout)
    if options.output == "json":
        json.dump([asdict(item) for item in found], sys.stdout, indent=2)
        print()
    elif not found:
        print("not up: run `flexpert local up`")
    else:
        rows: list[list[Any]] = [[item.name, item.pid, "running" if item.alive else "dead", item.log] for item in found]
        print(table(["PROCESS", "PID", "STATE", "LOG"], rows))
        for pool, page in sorted(pages(layout).items()):
            print(f"page of {pool}: {page}")
    return 0 if found and all(item.alive for item in found) else 1
