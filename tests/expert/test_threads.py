"""What `flexpert_workers.threads` promises, seen from processes of their own."""

import json
import os
import subprocess
import sys

import pytest

from flexpert_workers import threads

SCRIPT = """
import json, os
from flexpert_workers import threads
threads.configure(3)
threads.configure(3)
import torch
torch.ones(64, 64) @ torch.ones(64, 64)
print(json.dumps([torch.get_num_threads(), torch.get_num_interop_threads(), os.environ["OMP_WAIT_POLICY"]]))
"""


def test_environment_names_every_pool_and_the_wait_policy():
    variables = threads.environment(2)
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "2"
    assert variables["OMP_WAIT_POLICY"] == "PASSIVE"


def test_configure_sets_torch_and_what_children_inherit():
    answer = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, text=True, timeout=120)
    assert json.loads(answer.stdout) == [3, 1, "PASSIVE"]


def test_share_of_cores_is_a_fair_share_and_never_zero():
    cores = len(os.sched_getaffinity(0))
    assert threads.share_of_cores(1) == cores
    assert threads.share_of_cores(10 * cores) == 1


@pytest.mark.parametrize("number", [0, -1])
def test_no_threads_is_an_error(number):
    with pytest.raises(ValueError, match="at least 1"):
        threads.environment(number)
    with pytest.raises(ValueError, match="at least 1"):
        threads.share_of_cores(number)
