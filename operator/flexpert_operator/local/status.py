"""`flexpert local status`: which parts and containers run."""

from dataclasses import dataclass

from flexpert_operator.local import processes, state
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.runtime import books
from flexpert_operator.local.runtime.containers import container_log
from flexpert_operator.local.state import PARTS


@dataclass(frozen=True)
class Running:
    """A process of the laptop cluster.

    Attributes:
        name: A part's, or `pod/container`.
        pid: None when it has never run.
        alive: Whether it runs.
    """

    name: str
    pid: int | None
    alive: bool
    log: str


def local_status(layout: Layout) -> list[Running]:
    """Parts first, then the containers; everything `dead` when the cluster is down."""
    parts = state.read_parts(layout)
    found = [
        Running(part, process.pid, processes.alive(process), str(state.log_of(layout, part)))
        for part in PARTS
        if (process := parts.get(part)) is not None
    ]
    for pod in sorted(books.load(layout.pods).values(), key=lambda pod: pod.name):
        for container in pod.containers:
            process = container.process
            found.append(
                Running(
                    f"{pod.name}/{container.name}",
                    process.pid if process else None,
                    process is not None and processes.alive(process),
                    str(container_log(layout, pod, container.name)),
                )
            )
    return found
