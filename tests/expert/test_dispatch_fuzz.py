"""atheris on a worker's side of a dispatch, where it is installed (`pip install 'flexpert[fuzz]'`)."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from malformed import NUM_FRAMES

PROGRAM = Path(__file__).with_name("dispatch_fuzz.py")


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.timeout(max(300, NUM_FRAMES))
def test_no_bytes_are_too_much_for_a_dispatch(tmp_path: Path) -> None:
    runs = max(2000, 10 * NUM_FRAMES)
    command = [sys.executable, str(PROGRAM), f"-atheris_runs={runs}", "-max_len=600", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
