"""The model's files on every node: which fetch next, how far all are, and what a controller does while they come."""

import asyncio
from dataclasses import replace

import pytest

from flexpert_workers.errors import CheckpointNotFound
from flexpert_workers.pool.fetching import Failures, ModelFetches, summary, to_begin
from flexpert_workers.pool.launchers import LauncherUnavailable
from flexpert_workers.pool.state import FetchState, ModelFacts, ModelFiles, Slot
from flexpert_workers.pool.watching import FOLDER_PERIOD_S, REMOTE_PERIOD_S, UNREADABLE, SourceWatch

COMMIT, NEWER = "a" * 40, "b" * 40
SOURCE = f"hf://org/tiny@{COMMIT}"
READY, COMING, FAILED = FetchState("Ready"), FetchState("Downloading", 3, 10), FetchState("Failed", message="full")


class PaperFetcher:
    """Nodes on paper; a test says how far each is."""

    def __init__(self, *nodes):
        self.there = list(nodes)
        self.states: dict[str, FetchState] = {}
        self.begun: list[str] = []
        self.away = False

    async def nodes(self):
        if self.away:
            raise LauncherUnavailable("no Ray")
        return tuple(self.there)

    async def begin(self, node, source):
        self.begun.append(node)
        self.states[node] = COMING

    async def state(self, node, source):
        return self.states.get(node)

    async def end(self, node, source):
        self.states.pop(node, None)


class Rig:
    def __init__(self, *nodes):
        self.now = 0.0
        self.changes = 0
        self.fetcher = PaperFetcher(*nodes)
        self.fetches = ModelFetches(self.fetcher, self._changed, lambda: self.now)

    def _changed(self):
        self.changes += 1

    def look(self, source=SOURCE, after=1.0):
        self.now += after
        asyncio.run(self.fetches.round(source, 10))


def test_few_nodes_fetch_at_a_time_and_those_that_failed_come_last():
    nodes = ("a", "b", "c", "d")

    assert to_begin(nodes, {}, {}, 0.0, at_once=2) == ("a", "b")
    assert to_begin(nodes, {"a": COMING, "b": READY}, {}, 0.0, at_once=2) == ("c",)
    assert to_begin(nodes, {"a": COMING, "gone": COMING}, {"b": Failures(1, 0.0)}, 9.0, at_once=3) == ("c", "d")
    assert to_begin(nodes, {}, {"a": Failures(1, 0.0)}, 1.0) == ("b", "c", "d")


def test_a_failed_fetch_is_tried_again_ever_later():
    assert [Failures(count, 100.0).retry_at for count in (1, 2, 3, 99)] == [105.0, 110.0, 120.0, 400.0]


def test_all_nodes_together_are_as_far_as_the_last_of_them():
    assert summary((), {}, 10) == ModelFiles()
    assert summary(("a", "b"), {"a": READY, "b": COMING}, 10) == ModelFiles("Downloading", 13, 20, 1, 2)
    assert summary(("a", "b"), {"a": READY}, 10).phase == "Waiting"
    assert summary(("a", "b"), {"a": FAILED, "b": COMING}, 10).message == "full"
    assert summary(("a",), {"a": READY}, 10) == ModelFiles("Ready", 10, 10, 1, 1)


def test_a_slot_counts_once_its_node_has_the_files():
    rig = Rig("n1", "n2")
    first, second = Slot("s1", ray_node_id="n1"), Slot("s2", ray_node_id="n2")
    assert not rig.fetches.holds(SOURCE, first)
    rig.look()
    assert (rig.fetches.holds(SOURCE, first), rig.fetches.holds(SOURCE, second)) == (False, False)

    rig.fetcher.states["n1"] = READY
    rig.look()

    assert (rig.fetches.holds(SOURCE, first), rig.fetches.holds(SOURCE, second)) == (True, False)
    assert rig.fetches.files() == ModelFiles("Downloading", 13, 20, 1, 2)
    assert rig.changes == 2
    assert not rig.fetches.holds(f"hf://org/tiny@{NEWER}", first)


def test_a_folder_is_on_every_node():
    rig = Rig("n1")
    rig.look(source="file:///models/tiny")

    assert rig.fetches.holds("file:///models/tiny", Slot("s1", ray_node_id="n1"))
    assert (rig.fetcher.begun, rig.fetches.files()) == ([], ModelFiles())


def test_a_failure_is_told_until_the_node_has_the_files():
    rig = Rig("n1")
    rig.look()
    rig.fetcher.states["n1"] = replace(FAILED, error="CacheUnusable")
    rig.look()
    assert (rig.fetches.files().phase, rig.fetches.files().error) == ("Failed", "CacheUnusable")

    rig.look(after=2.0)
    assert rig.fetcher.begun == ["n1"]
    rig.look(after=5.0)
    assert rig.fetcher.begun == ["n1", "n1"]
    rig.fetcher.states["n1"] = READY
    rig.look()

    assert rig.fetches.files().phase == "Ready"


def test_a_fetch_that_dies_without_a_word_is_begun_again():
    rig = Rig("n1")
    rig.look()
    rig.fetcher.states.clear()
    rig.look()
    assert "without a word" in rig.fetches.files().message

    rig.look(after=10.0)

    assert rig.fetcher.begun == ["n1", "n1"]


def test_nodes_that_come_and_go_and_a_launcher_that_is_away():
    rig = Rig("n1")
    rig.look()
    rig.fetcher.away = True
    rig.look()
    rig.fetcher.away = False
    rig.fetcher.there = ["n2"]
    rig.look()

    assert rig.fetcher.begun == ["n1", "n2"]
    assert rig.fetches.files().nodes == 1


# ---- sources that change


def facts(source: str, resolved: str, digest: str = "digest") -> ModelFacts:
    return ModelFacts(source, "main", "Auto", digest, "X", 1, 1, 1, 1, resolved=resolved)


class Watched:
    """A source whose state and digest a test sets."""

    def __init__(self):
        self.now = 0.0
        self.state: str | Exception = COMMIT
        self.digest = "digest"
        self.resolved = 0
        self.watch = SourceWatch(self._inspect, self._resolve, lambda: self.now)

    async def _resolve(self, source, revision):
        self.resolved += 1
        if isinstance(self.state, Exception):
            raise self.state
        return self.state

    async def _inspect(self, source, revision, dtype):
        return facts(source, "", self.digest)

    def look(self, model, after):
        self.now += after
        return asyncio.run(self.watch.look(model))


def test_a_branch_that_moved_is_told_and_so_is_that_it_moved_back():
    watched, model = Watched(), facts("hf://org/tiny", COMMIT)
    assert watched.look(model, 0.0) == ""
    watched.state = NEWER

    assert watched.look(model, 1.0) == ""
    assert watched.look(model, REMOTE_PERIOD_S) == NEWER
    watched.state = CheckpointNotFound("away")
    assert watched.look(model, REMOTE_PERIOD_S) == NEWER
    watched.state = COMMIT
    assert watched.look(model, REMOTE_PERIOD_S) == ""
    assert watched.resolved == 3


def test_files_that_were_written_count_when_they_are_others_by_then():
    watched, model = Watched(), facts("file:///m", "before")
    watched.look(model, 0.0)
    watched.state = "touched"
    assert watched.look(model, FOLDER_PERIOD_S) == ""
    watched.state, watched.digest = "written", "another"
    assert watched.look(model, FOLDER_PERIOD_S) == "written"
    watched.state = CheckpointNotFound("gone")
    assert watched.look(model, FOLDER_PERIOD_S) == UNREADABLE
    watched.state = "touched"
    assert watched.look(model, FOLDER_PERIOD_S) == ""


@pytest.mark.parametrize("resolved", ["", "before"])
def test_a_model_of_which_nothing_is_known_is_not_watched(resolved):
    watched = Watched()
    watched.state = "other"
    expected = "other" if resolved else ""
    watched.digest = "another"
    watched.look(facts("file:///m", resolved), 0.0)
    assert watched.look(facts("file:///m", resolved), FOLDER_PERIOD_S) == expected
