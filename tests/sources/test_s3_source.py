"""`s3://` with s3fs itself, in a process of its own as a node has it. Skipped where s3fs is not installed: it cannot be
beside the operator's client of Kubernetes, since the two want different versions of python-dateutil.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from s3_server import KEY, Bucket, serving

from flexpert_proto import names

pytestmark = pytest.mark.skipif(importlib.util.find_spec("s3fs") is None, reason="s3fs is not installed")

WEIGHTS = "models/tiny/model.safetensors"


@pytest.fixture
def bucket():
    objects = {
        "models/tiny/config.json": b"{}",
        WEIGHTS: os.urandom(9 << 20),
        "models/tiny/pytorch_model.bin": b"pickle",
        "models/tiny/deeper/x.json": b"{}",
    }
    with serving(Bucket(objects=objects)) as bucket:
        yield bucket


def fetch(bucket, folder, *arguments, key=KEY, source="s3://bucket/models/tiny"):
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": bucket.url,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        names.ENV_MODEL_CACHE: str(folder),
    }
    command = [sys.executable, "-m", "flexpert_workers.sources.fetch", source, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=200)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_folder_is_fetched_and_verified(bucket, tmp_path):
    said = fetch(bucket, tmp_path)

    assert said["phase"] == "Ready"
    found = {name for name in os.listdir(said["folder"]) if not name.startswith(".")}
    assert found == {"config.json", "model.safetensors"}
    with open(os.path.join(said["folder"], "model.safetensors"), "rb") as file:
        assert file.read() == bucket.objects[WEIGHTS]
    served = len(bucket.served)
    assert fetch(bucket, tmp_path, "--verify")["phase"] == "Ready"
    assert len(bucket.served) == served


def test_keys_that_do_not_open_it_are_told(bucket, tmp_path):
    said = fetch(bucket, tmp_path, key="AKIAOTHER")

    assert said["error"] == "AccessDenied"
    assert "spec.model.credentialsSecretRef" in said["message"]


@pytest.mark.parametrize("source", ["s3://bucket/models/nothing", "s3://other/models/tiny"])
def test_what_is_not_there_is_told(bucket, tmp_path, source):
    said = fetch(bucket, tmp_path, source=source)

    assert (said["error"], "spec.model.source" in said["message"]) == ("CheckpointNotFound", True)


def test_a_store_that_breaks_off_is_resumed(bucket, tmp_path):
    bucket.cut = [WEIGHTS]
    said = fetch(bucket, tmp_path)
    assert said["error"] in ("SourceUnreachable", "CorruptCheckpoint")
    bucket.cut = []

    assert fetch(bucket, tmp_path)["phase"] == "Ready"
