"""`flexpert top [NAME]`: a pool as it is now, in the terminal, until Ctrl-C.

A controller that restarts, or an API server that is away, is told on the screen, and looked for again.
"""

import argparse
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import grpc
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from flexpert_operator.api import names
from flexpert_operator.cli import access
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.pool import OPTIONS
from flexpert_operator.cli.reach import Reach, reach_of
from flexpert_operator.cli.top_screen import Line, lines_of, text_of
from flexpert_operator.cli.top_view import Look, View, kept, view_of
from flexpert_operator.errors import KubeError, KubeNotFound, KubeRefused
from flexpert_operator.kube import MOE_DEPLOYMENTS, Object, Resource
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.pool_pb2_grpc import PoolControlStub

POLICIES = Resource(names.GROUP, names.VERSION, names.POLICY_PLURAL)
WIDTH_OF_FILES = 200
_ANSWER_S = 5.0
_SHORTEST_S = 0.1


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("top", help="show a pool as it is now: workers, engines, balance, reconfigurations")
    parser.add_argument("name", nargs="?", help="MoEDeployment (default: the only one)")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks")
    parser.add_argument("--once", action="store_true", help="print what there is, after two looks, and end")
    parser.add_argument("-o", "--output", choices=["json"], help="a JSON object a look")
    access.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show it: once, again and again as text where this is no terminal, else on the whole screen."""
    reach = reach_of(options)
    deployment = access.find_deployment(reach.kube, options.namespace, options.name)
    with interrupted() as told, Watcher(reach, deployment) as watcher:
        views = watcher.views(max(options.interval, _SHORTEST_S), told)
        if options.once:
            _print(options, _second(views))
        elif options.output == "json" or not sys.stdout.isatty():
            for view in views:
                _print(options, view)
        else:
            _show(views)
    return 0


@contextmanager
def interrupted() -> Iterator[threading.Event]:
    """Set by Ctrl-C, beside KeyboardInterrupt: that is lost where Python is just destroying an object."""
    told = threading.Event()

    def tell(_number: int, _frame: FrameType | None) -> None:
        told.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, tell)
    try:
        yield told
    finally:
        signal.signal(signal.SIGINT, before)


def _second(views: Iterator[View]) -> View:
    """The second look, for rates come of two.

    Raises:
        CliError: The pool controller does not answer.
    """
    view = next(views)
    view = next(views) if not view.trouble else view
    if view.trouble:
        raise CliError(view.trouble)
    return view


def _print(options: argparse.Namespace, view: View) -> None:
    if options.output == "json":
        print(json.dumps(view.json(), indent=2 if options.once else None), flush=True)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH_OF_FILES
    print(text_of(lines_of(view, width)), end="\n" if options.once else "\n\n", flush=True)


def _show(views: Iterator[View]) -> None:
    """On the whole screen, each look drawn at once over the one before; what was there comes back at the end."""
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        for view in views:
            size = console.size
            live.update(rendered(lines_of(view, size.width, size.height)), refresh=True)


def rendered(lines: list[Line]) -> Group:
    """The lines as `rich` draws them."""
    texts = (Text.assemble(*((piece.text, piece.style) for piece in line)) for line in lines)
    return Group(*(text if text else Text(" ") for text in texts))


@dataclass
class Watcher:
    """Looks at a pool again and again; a context manager. What was seen last stays when nobody answers."""

    reach: Reach
    deployment: Object
    _looks: list[Look] = field(default_factory=list)
    _policy: Object | None = None
    _stub: PoolControlStub | None = None
    _dialled: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._dialled.close()

    def views(self, interval_s: float, told: threading.Event) -> Iterator[View]:
        """A view every `interval_s`, the first at once, until it is `told` to end.

        Raises:
            CliError: Nobody answers from the first on, and so there is nothing to show.
            KeyboardInterrupt: It was told.
        """
        while not told.is_set():
            yield self.look()
            told.wait(interval_s)
        raise KeyboardInterrupt

    def look(self) -> View:
        """Look once; raises as `views` does."""
        trouble = self._read_objects()
        try:
            self._looks.append(Look(self._read_pool(), time.time()))
        except CliError as error:
            if not self._looks:
                raise
            since = time.strftime("%H:%M:%S", time.localtime(self._looks[-1].at))
            trouble = f"as of {since}: {error}"
        now = time.time()
        self._looks = kept(self._looks, now)
        return view_of(self._looks, self.deployment, self._policy, trouble, now)

    def _read_pool(self) -> pb.Pool:
        address = names.control_address_of(self.deployment)
        request = pb.GetPoolRequest(with_placement=True, with_loads=True, with_figures=True)
        try:
            if self._stub is None:
                self._stub = PoolControlStub(self._dialled.enter_context(self.reach.channel(address, OPTIONS)))
            pool: pb.Pool = self._stub.GetPool(request, timeout=_ANSWER_S)
        except grpc.RpcError as error:
            self._hang_up()
            raise CliError(f"the pool controller does not answer at {address}: {error.details()}") from error
        return pool

    def _hang_up(self) -> None:
        """Dial anew the next time: the controller may be another pod by then."""
        self._stub = None
        self._dialled.close()

    def _read_objects(self) -> str:
        """Read the MoEDeployment and the policy that targets it; returns why they are not of now, or empty."""
        metadata = self.deployment["metadata"]
        try:
            found = self.reach.kube.find(MOE_DEPLOYMENTS, metadata["namespace"], metadata["name"])
            self._policy = self._find_policy(metadata)
        except KubeError as error:
            return f"the API server does not answer: {error}"
        if found is None:
            raise CliError(f"MoEDeployment {metadata['name']} is gone")
        self.deployment = found
        return ""

    def _find_policy(self, metadata: dict[str, Any]) -> Object | None:
        for policy in policies_of(self.reach, metadata["namespace"]):
            if policy["spec"]["targetRef"]["name"] == metadata["name"]:
                return policy
        return None


def policies_of(reach: Reach, namespace: str) -> list[Object]:
    """The policies of a namespace; none where the cluster does not know them, or they may not be read."""
    try:
        return reach.kube.list(POLICIES, namespace, "")
    except (KubeNotFound, KubeRefused):
        return []
