"""How every process of ours writes its log: as text for people, or as one JSON object a line for collectors.

`main` functions call `configure` once. `saying` names what a stretch of work is about, an operation's id for example:
each line that is written meanwhile, also by tasks and threads that it starts, carries that as fields of its own.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

from flexpert_proto import names

ENV_FORMAT = "FLEXPERT_LOG_FORMAT"
TEXT, JSON = "text", "json"
TEXT_LINE = "%(asctime)s %(levelname)s %(name)s %(message)s"
JSON_LINE = "%(levelname)s %(name)s %(message)s"

_about: ContextVar[Mapping[str, str]] = ContextVar("about")


class AboutFilter(logging.Filter):
    """Puts the process's own fields and those of `saying` on each record."""

    def __init__(self, own: Mapping[str, str]) -> None:
        super().__init__()
        self._own = own

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, with the fields."""
        for name, value in {**self._own, **_about.get({})}.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


class TextFormatter(logging.Formatter):
    """Text, with the operation's id at the end where there is one."""

    def __init__(self) -> None:
        super().__init__(TEXT_LINE)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line, operation = super().format(record), getattr(record, "operation", "")
        return f"{line} [{operation}]" if operation and operation not in line else line


@contextlib.contextmanager
def saying(**fields: str) -> Iterator[None]:
    """Name what is being worked on: `pool`, `operation` and so on."""
    before = _about.set({**_about.get({}), **fields})
    try:
        yield
    finally:
        _about.reset(before)


def formatter_of(log_format: str) -> logging.Formatter:
    """The formatter of a format.

    Raises:
        ValueError: There is no such format.
    """
    if log_format == JSON:
        names = {"levelname": "level", "name": "logger"}
        return JsonFormatter(JSON_LINE, rename_fields=names, timestamp="time")
    if log_format == TEXT:
        return TextFormatter()
    raise ValueError(f"{ENV_FORMAT} is {log_format!r}: it is {TEXT} or {JSON}")


def of_pool(part: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Fields that tell a pool's processes apart: `part`, and what the manifest says of its pod and MoEDeployment."""
    try:
        pool = json.loads(environment.get(names.ENV_POOL, "{}"))
    except ValueError:
        pool = {}
    said = {
        "namespace": pool.get("namespace"),
        "moedeployment": pool.get("name"),
        "pod": environment.get(names.ENV_POD),
    }
    return {"part": part, **{name: str(value) for name, value in said.items() if value}}


def configure(log_format: str | None = None, level: int = logging.INFO, own: Mapping[str, str] | None = None) -> None:
    """Have this process write its log to standard error; without a format as FLEXPERT_LOG_FORMAT says, else text.

    Args:
        log_format: TEXT or JSON.
        level: Below which nothing is written.
        own: Fields that each line in JSON has.

    Raises:
        ValueError: There is no such format.
    """
    root = logging.getLogger()
    root.setLevel(level)
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
    formatter = formatter_of(log_format or os.environ.get(ENV_FORMAT, TEXT))
    for handler in root.handlers:
        handler.setFormatter(formatter)
        handler.addFilter(AboutFilter(own or {}))
