"""The layout rules that break other programs when they are not kept."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("folder", ["operator", "proto", "workers", "placement", "tests"])
def test_no_package_shadows_a_module(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    inits = list((ROOT / "tests").rglob("__init__.py"))
    assert inits == []


def test_an_interpreter_started_in_the_root_finds_pythons_own_operator() -> None:
    code = "import operator; print(operator.add(1, 2))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"
