"""`s3://` and `gs://`: what is done with any of fsspec's file systems, on its memory one."""

import hashlib

import fsspec
import pytest

from flexpert_workers.errors import AccessDenied, CheckpointNotFound, CorruptCheckpoint, SourceUnreachable
from flexpert_workers.sources import Cache, parse_remote
from flexpert_workers.sources.bringing import Bringer
from flexpert_workers.sources.cache import PARTIAL
from flexpert_workers.sources.filling import Progress
from flexpert_workers.sources.stores import StoreFiles

SOURCE = "s3://bucket/models/tiny"
WEIGHTS = "model.safetensors"


class Store(fsspec.get_filesystem_class("memory")):
    """A store of its own, which counts what is read and fails when it is told to."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.read_at: list[tuple[str, int]] = []
        self.failure: BaseException | None = None
        self.fails_after = 0
        self.short_of = ""
        self.described: dict[str, str] = {}

    def cat_file(self, path, start=None, end=None, **kwargs):
        if self.failure is not None and len(self.read_at) >= self.fails_after:
            raise self.failure
        name = path.rpartition("/")[2]
        self.read_at.append((name, start))
        data = super().cat_file(path, start=start, end=end, **kwargs)
        return data[:-1] if name == self.short_of else data

    def ls(self, path, detail=True, **kwargs):
        found = super().ls(path, detail=True, **kwargs)
        return [{**entry, "ETag": self._etag(entry["name"]), **self.described} for entry in found]

    def _etag(self, path):
        return hashlib.sha256(self.store[path].getvalue()).hexdigest() if path in self.store else ""


@pytest.fixture
def store():
    store = Store()
    store.pipe_file("bucket/models/tiny/config.json", b'{"architectures": ["X"]}')
    store.pipe_file(f"bucket/models/tiny/{WEIGHTS}", bytes(range(256)) * (20 << 12))
    store.pipe_file("bucket/models/tiny/training_args.bin", b"pickle")
    store.pipe_file("bucket/models/tiny/deeper/other.json", b"{}")
    return store


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def fetch(store, cache, source=SOURCE):
    return Bringer(cache, lambda remote: StoreFiles(remote, store)).whole(parse_remote(source), Progress())


def test_a_folder_of_a_bucket_is_fetched_without_pickles(store, cache):
    pinned, folder = fetch(store, cache)

    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["config.json", WEIGHTS]
    assert (folder / WEIGHTS).read_bytes() == store.cat_file(f"bucket/models/tiny/{WEIGHTS}")
    assert str(pinned) == f"{SOURCE}@{pinned.revision}"


def test_a_fetch_that_broke_off_goes_on_behind_what_came(store, cache):
    store.failure, store.fails_after = OSError("Connection reset"), 2

    with pytest.raises(SourceUnreachable, match="cannot be read: OSError: Connection reset; it is tried again"):
        fetch(store, cache)
    store.failure = None
    store.read_at.clear()
    fetch(store, cache)

    assert store.read_at[0] == (WEIGHTS, 8 << 20)


def test_a_store_that_was_written_is_another_revision(store, cache):
    before, _ = fetch(store, cache)
    store.pipe_file("bucket/models/tiny/config.json", b'{"architectures": ["Y"]}')

    after, folder = fetch(store, cache)

    assert after.revision != before.revision
    assert (folder / "config.json").read_bytes() == b'{"architectures": ["Y"]}'


def test_what_was_pinned_and_is_gone_is_not_replaced_by_what_is_there_now(store, cache, tmp_path):
    pinned, _ = fetch(store, cache)
    store.pipe_file("bucket/models/tiny/config.json", b'{"architectures": ["Y"]}')

    with pytest.raises(CorruptCheckpoint, match="not what it was when this pool began to serve it"):
        fetch(store, Cache(tmp_path / "another node"), str(pinned))


def test_files_that_are_written_while_they_are_fetched_do_not_count(store, cache):
    class Changing(StoreFiles):
        def append(self, file, target, done):
            super().append(file, target, done)
            store.pipe_file("bucket/models/tiny/tokenizer.json", b"{}")

    remote = parse_remote(SOURCE)
    bringer = Bringer(cache, lambda remote: Changing(remote, store))

    with pytest.raises((SourceUnreachable, CorruptCheckpoint), match=r"was written while|is not what it was"):
        bringer.whole(remote, Progress())


def test_a_read_that_is_short_is_a_truncated_file(store, cache):
    store.short_of = WEIGHTS

    with pytest.raises(CorruptCheckpoint, match=f"{WEIGHTS} is truncated: 8388608 bytes were asked for at 0, 8388607"):
        fetch(store, cache)


def test_bytes_that_have_not_the_md5_that_the_store_names_are_refused(store, cache):
    store.described = {"md5Hash": "AAAA"}

    with pytest.raises(CorruptCheckpoint, match=r"is damaged: its md5 is [0-9a-f]{32}, not 0{6}"):
        fetch(store, cache)

    assert not list(cache.root.glob(f"s3/*/*/{PARTIAL}/*"))


@pytest.mark.parametrize(
    ("failure", "error", "says"),
    [
        (FileNotFoundError("bucket"), CheckpointNotFound, "does not exist: check spec.model.source"),
        (PermissionError("Access Denied"), AccessDenied, "may not be read .*spec.model.credentialsSecretRef"),
        (OSError("Forbidden: 403"), AccessDenied, "may not be read .*spec.model.credentialsSecretRef"),
        (TimeoutError("slow"), SourceUnreachable, "TimeoutError: slow; it is tried again"),
    ],
)
def test_what_stores_raise_is_told_with_what_to_change(store, cache, failure, error, says):
    store.failure = failure

    with pytest.raises(error, match=says):
        fetch(store, cache)


def test_a_folder_that_is_not_there(store, cache):
    with pytest.raises(CheckpointNotFound, match=r"does not exist: check spec.model.source"):
        fetch(store, cache, "s3://bucket/models/nothing")


@pytest.mark.parametrize("source", ["s3://", "s3://bucket/../x", "hf://org", "hf://org/a/b", "hf://org/n?x=1"])
def test_sources_that_are_of_no_form_are_refused(source):
    with pytest.raises(CheckpointNotFound, match="write"):
        parse_remote(source)
