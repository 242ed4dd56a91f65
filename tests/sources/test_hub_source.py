"""`hf://`, against a small hub on loopback that goes wrong in the ways that real ones do."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_server import COMMIT, NAME, NEWER, Hub, serving
from huggingface_hub import constants

from flexpert_proto import names
from flexpert_workers.checkpoint import open_checkpoint, open_folder
from flexpert_workers.errors import (
    AccessDenied,
    CacheUnusable,
    CheckpointNotFound,
    CorruptCheckpoint,
    SourceUnreachable,
)
from flexpert_workers.sources import Cache, bringing, filling, parse_remote
from flexpert_workers.sources.bringing import Bringer
from flexpert_workers.sources.cache import MANIFEST, PARTIAL
from flexpert_workers.sources.filling import FetchPhase, Filler, Progress
from flexpert_workers.sources.hub import HubFiles

TINY = Path(__file__).parents[2] / "examples/models/tiny-moe"
WEIGHTS = "model.safetensors"
SOURCE = f"hf://{NAME}"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(Hub.of(TINY)) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def bringer(hub: Hub, cache: Cache) -> Bringer:
    return Bringer(cache, lambda remote: HubFiles(remote, hub.url))


def fetch(hub: Hub, cache: Cache, revision: str = "main", verified: bool = False) -> Path:
    return bringer(hub, cache).whole(parse_remote(SOURCE, revision), Progress(), verified)[1]


def fetch_command(hub: Hub, cache: Cache, *arguments: str, **environment: str) -> subprocess.Popen:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, names.ENV_MODEL_CACHE: str(cache.root), **environment}
    command = [sys.executable, "-m", "flexpert_workers.sources.fetch", SOURCE, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def said_by(process: subprocess.Popen) -> list[dict]:
    out, _ = process.communicate(timeout=120)
    return [json.loads(line) for line in out.splitlines()]


def test_a_checkpoint_is_fetched_pinned_and_opened_where_it_is(hub, cache, monkeypatch):
    progress = Progress()

    pinned, folder = bringer(hub, cache).whole(parse_remote(SOURCE, "main"), progress)

    assert str(pinned) == f"{SOURCE}@{COMMIT}"
    assert {path.name for path in folder.iterdir()} - {MANIFEST} == set(hub.files) - {"README.md"}
    assert (progress.phase, progress.bytes_done) == (FetchPhase.READY, progress.bytes_total)
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    monkeypatch.setenv(names.ENV_MODEL_CACHE, str(cache.root))
    assert open_checkpoint(str(pinned)).digest == open_folder(TINY).digest


def test_a_second_fetch_asks_for_nothing_but_the_commit(hub, cache):
    fetch(hub, cache)
    served, requests = len(hub.served), hub.requests

    fetch(hub, cache)

    assert (len(hub.served), hub.requests) == (served, requests + 1)


def test_an_inspection_reads_headers_and_samples_alone_and_finds_the_same_digest(hub, cache):
    located = bringer(hub, cache).located(SOURCE, "main")

    assert open_folder(located.folder).digest == open_folder(TINY).digest
    assert (located.source, located.revision) == (f"{SOURCE}@{COMMIT}", COMMIT)
    assert located.num_bytes == sum(len(data) for name, data in hub.files.items() if name != "README.md")
    on_disk = (located.folder / WEIGHTS).stat()
    assert on_disk.st_blocks * 512 < on_disk.st_size / 4
    assert not cache.entry(parse_remote(located.source)).is_whole()


def test_an_ingress_fetches_no_weights(hub, cache):
    folder = bringer(hub, cache).small(f"{SOURCE}@{COMMIT}")

    assert (folder / "tokenizer.json").read_bytes() == hub.files["tokenizer.json"]
    assert hub.fetched(WEIGHTS) == []


def test_a_connection_that_breaks_is_resumed_where_it_broke(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.cut = [(WEIGHTS, 1_000_000)]

    folder = fetch(hub, cache)

    assert hub.fetched(WEIGHTS) == [0, 1_000_000 >> 16 << 16]
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_fetch_that_was_killed_is_resumed_by_the_next_process(hub, cache):
    hub.files[WEIGHTS] = os.urandom(24 << 20)
    hub.cut, hub.hold = [(WEIGHTS, 22 << 20)], threading.Event()
    first = fetch_command(hub, cache)
    assert hub.held.wait(60)
    entry = cache.entry(parse_remote(f"{SOURCE}@{COMMIT}"))
    partial = entry.folder / PARTIAL / WEIGHTS
    rounds = 0
    while not (partial.exists() and partial.stat().st_size > 0) and rounds < 6000:
        threading.Event().wait(0.01)
        rounds += 1
    second = fetch_command(hub, cache)  # waits for the lock
    first.send_signal(signal.SIGKILL)
    first.communicate()

    said = said_by(second)

    assert second.returncode == 0
    assert said[-1]["source"] == f"{SOURCE}@{COMMIT}"
    assert len(hub.fetched(WEIGHTS)) == 2
    assert 10 << 20 <= hub.fetched(WEIGHTS)[1] <= 22 << 20
    assert (entry.folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_many_processes_of_a_node_fetch_once(hub, cache):
    processes = [fetch_command(hub, cache) for _ in range(4)]

    said = [said_by(process) for process in processes]

    assert [process.returncode for process in processes] == [0] * 4
    assert hub.fetched(WEIGHTS) == [0]
    assert all(lines[-1]["phase"] == "Ready" for lines in said)
    assert all(line["bytes_done"] <= line["bytes_total"] for lines in said for line in lines if "bytes_done" in line)


def test_a_file_that_was_damaged_on_its_way_is_fetched_once_more(hub, cache):
    hub.damaged = [WEIGHTS, "config.json"]

    folder = fetch(hub, cache)

    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert (folder / "config.json").read_bytes() == hub.files["config.json"]


def test_a_file_that_stays_damaged_is_refused_by_name_with_both_checksums(hub, cache):
    hub.damaged = [WEIGHTS] * 9

    with pytest.raises(CorruptCheckpoint, match=rf"{WEIGHTS} is damaged: its sha256 is [0-9a-f]+, not [0-9a-f]+"):
        fetch(hub, cache)

    assert not cache.entry(parse_remote(f"{SOURCE}@{COMMIT}")).is_whole()


def test_what_rots_on_the_disk_is_found_on_demand_and_fetched_anew(hub, cache):
    folder = fetch(hub, cache)
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"rot")

    fetch(hub, cache, verified=True)

    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_file_that_was_cut_short_on_the_disk_makes_the_copy_incomplete(hub, cache):
    folder = fetch(hub, cache)
    os.truncate(folder / WEIGHTS, 100)

    assert not cache.entry(parse_remote(f"{SOURCE}@{COMMIT}")).is_whole()
    fetch(hub, cache)

    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_the_token_of_the_environment_is_used(hub, cache):
    hub.token = "hf_secret"

    process = fetch_command(hub, cache, HF_TOKEN="hf_secret")

    assert said_by(process)[-1]["phase"] == "Ready"


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        ({"token": "hf_other"}, AccessDenied, "401.*spec.model.tokenSecretRef"),
        ({"token": "hf_other", "gated": True}, AccessDenied, "gated: accept its terms.*spec.model.tokenSecretRef"),
        ({"status": 403}, AccessDenied, "403.*spec.model.tokenSecretRef"),
        ({"status": 500}, SourceUnreachable, "status 500.*tried again"),
        ({"status": 429}, SourceUnreachable, "status 429.*tried again"),
        ({"commits": {"v2": COMMIT}}, CheckpointNotFound, "no revision 'main': set spec.model.revision"),
        ({"files": {"config.json": b"{}"}}, CheckpointNotFound, "has no model.safetensors"),
        (
            {"files": {"config.json": b"{}", "pytorch_model.bin": b"x"}},
            CheckpointNotFound,
            r"pickled weights \(pytorch_model.bin\): those are never opened",
        ),
        (
            {"files": {"model.safetensors.index.json": b'{"weight_map": {"a": "x.bin"}}', "x.bin": b"x"}},
            CheckpointNotFound,
            "names x.bin; only safetensors",
        ),
        ({"files": {"model.safetensors.index.json": b"{"}}, CorruptCheckpoint, "has no weight_map"),
        ({"cut": [(WEIGHTS, 0)] * 99}, SourceUnreachable, "tried again"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_what_goes_wrong_is_told_with_what_to_change(hub, cache, spoil, error, says, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub pauses between its attempts
    for name, value in spoil.items():
        setattr(hub, name, value)

    with pytest.raises(error, match=says):
        fetch(hub, cache)


def test_a_repository_that_is_not_there(hub, cache):
    with pytest.raises(CheckpointNotFound, match=r"does not exist .*check spec.model.source"):
        bringer(hub, cache).whole(parse_remote("hf://org/nothing"), Progress())


def test_a_hub_that_does_not_answer(cache):
    nowhere = Bringer(cache, lambda remote: HubFiles(remote, "http://127.0.0.1:9"))

    with pytest.raises(SourceUnreachable, match=r"127\.0\.0\.1:9 cannot be read"):
        nowhere.whole(parse_remote(SOURCE), Progress())


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_fetched(hub, cache, monkeypatch):
    monkeypatch.setattr(bringing, "Filler", lambda *around: Filler(*around, free=lambda _: 1_000_000))

    with pytest.raises(CacheUnusable, match=r"does not fit .*0\.0 GiB are free in .*larger place in spec.model.cache"):
        fetch(hub, cache)

    assert hub.fetched(WEIGHTS) == []


def test_a_disk_that_fills_up_in_between_is_told(hub, cache, monkeypatch):
    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(filling.os, "fsync", full)

    with pytest.raises(CacheUnusable, match=r"No space left on device: make room there .* spec.model.cache"):
        fetch(hub, cache)


def test_a_cache_that_cannot_be_written_is_told(hub, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(CacheUnusable, match=r"cannot write .*spec.model.cache"):
        fetch(hub, Cache(tmp_path / "file" / "cache"))


def test_offline_what_is_here_is_served_without_a_request(hub, cache):
    folder = fetch(hub, cache)
    requests = hub.requests
    offline = Cache(cache.root, offline=True)

    assert fetch(hub, offline) == folder
    assert fetch(hub, offline, COMMIT) == folder
    assert bringer(hub, offline).located(SOURCE, "main").folder == folder
    assert bringer(hub, offline).small(f"{SOURCE}@{COMMIT}") == folder
    assert hub.requests == requests


def test_offline_what_is_not_here_is_refused_with_what_to_do(hub, tmp_path):
    offline = Cache(tmp_path / "empty", offline=True)

    for revision in ("main", COMMIT):
        with pytest.raises(CacheUnusable, match=r"offline: fetch it there once with .*sources.fetch"):
            fetch(hub, offline, revision)
    assert hub.requests == 0


def test_the_command_honours_hf_hub_offline(hub, cache):
    process = fetch_command(hub, cache, HF_HUB_OFFLINE="1")

    said = said_by(process)

    assert process.returncode == 3
    assert said[-1]["error"] == "CacheUnusable"
    assert hub.requests == 0


def test_a_branch_that_moved_is_resolved_anew_and_a_pinned_source_is_not(hub, cache):
    first = fetch(hub, cache)
    hub.commits["main"] = NEWER

    assert bringer(hub, cache).resolve(parse_remote(SOURCE, "main")).revision == NEWER
    assert bringer(hub, cache).whole(parse_remote(f"{SOURCE}@{COMMIT}"), Progress())[1] == first
