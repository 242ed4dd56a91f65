"""A release of the chart as Helm's engine renders it; the tests of `tests/chart` share it."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "flexpert"
RELEASE = "fx"
NAMESPACE = "flexpert-system"

Object = dict[str, Any]


class Chart:
    """The chart, rendered by Helm's engine in another process."""

    def __init__(self, engine: "subprocess.Popen[str]") -> None:
        self._engine = engine

    def ask(self, verb: str, values: Object | None = None, *, upgrade: bool = False) -> Object:
        """One question to the engine."""
        request = {"verb": verb, "values": values or {}, "name": RELEASE, "namespace": NAMESPACE, "upgrade": upgrade}
        assert self._engine.stdin is not None
        assert self._engine.stdout is not None
        self._engine.stdin.write(json.dumps(request) + "\n")
        self._engine.stdin.flush()
        answer: Object = json.loads(self._engine.stdout.readline())
        return answer

    def files(self, values: Object | None = None, *, upgrade: bool = False) -> dict[str, str]:
        """Rendered files by their names below `templates/`."""
        answer = self.ask("render", values, upgrade=upgrade)
        assert "files" in answer, answer
        return {path.split("templates/", 1)[1]: text for path, text in answer["files"].items()}

    def objects(self, values: Object | None = None) -> list[Object]:
        """All objects of a release."""
        files = {path: text for path, text in self.files(values).items() if path.endswith(".yaml")}
        return [one for text in files.values() for one in yaml.load_all(text, yaml.CSafeLoader) if one]

    def one(self, kind: str, values: Object | None = None) -> Object:
        """The one object of a kind."""
        (found,) = [one for one in self.objects(values) if one["kind"] == kind]
        return found

    def refusal(self, values: Object) -> str:
        """Why Helm refuses values."""
        answer = self.ask("render", values)
        assert "refusal" in answer, answer
        return str(answer["refusal"])


@contextlib.contextmanager
def open_chart() -> Iterator[Chart]:
    """The chart of this checkout; skips the test where Helm's engine is not installed."""
    if importlib.util.find_spec("helm_python") is None:
        pytest.skip("Helm's engine is not installed: helm-python-sdk has no wheel for this platform")
    command = [sys.executable, str(Path(__file__).with_name("chart_engine.py")), str(CHART)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engine:
        yield Chart(engine)
        with contextlib.suppress(BrokenPipeError):
            assert engine.stdin is not None
            engine.stdin.close()
        engine.wait(30)
