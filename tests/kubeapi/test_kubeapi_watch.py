"""Store, lists and watches: revisions, history, pages, selectors, bookmarks, initial events."""

import pytest

from flexpert_operator.local.kubeapi.errors import BadRequest, Expired, Invalid, Timeout
from flexpert_operator.local.kubeapi.reads import ListOptions, list_page
from flexpert_operator.local.kubeapi.selectors import Selector, parse_labels
from flexpert_operator.local.kubeapi.store import Key, Storage, Store
from flexpert_operator.local.kubeapi.watch import INITIAL_EVENTS_END, Watch, WatchOptions, check

WD = "example.dev/v1/widgets"
THINGS = Storage("", "things")


def thing(name, **labels):
    return {"metadata": {"name": name, "labels": labels}}


def put(store, name, **labels):
    return store.put(Key(THINGS, "", name), thing(name, **labels))


async def drain(watch):
    """What the watch has now, as (type, name or revision)."""
    found = []
    while (change := await watch.next(0.01)) is not None:
        found.append((change.type, change.object.get("metadata", {}).get("name")))
    return found


def test_every_change_has_a_new_revision():
    store = Store()
    first, second = put(store, "a"), put(store, "a", x="y")
    assert int(second["metadata"]["resourceVersion"]) == int(first["metadata"]["resourceVersion"]) + 1
    assert "labels" in first["metadata"]
    assert first["metadata"]["labels"] == {}


def test_the_past_can_be_read_while_history_lasts():
    store = Store(history=2)
    put(store, "a")
    then = store.revision
    put(store, "b")
    store.remove(Key(THINGS, "", "a"))
    assert [key.name for key, _ in store.items_at(THINGS, then)] == ["a"]
    assert [event.type for event in store.events_since(THINGS, then)] == ["ADDED", "DELETED"]
    put(store, "c")
    with pytest.raises(Expired):
        store.items_at(THINGS, then)


def test_pages_hold_their_revision(bench, widget):
    for name in ("a", "b", "c"):
        bench.create(WD, widget(name))
    resource, store = bench.resource(WD), bench.api.store
    first = list_page(store, resource, ListOptions(limit=2))
    bench.create(WD, widget("bb"))
    second = list_page(store, resource, ListOptions(limit=2, continue_token=first.metadata["continue"]))
    assert [obj["metadata"]["name"] for obj in first.items + second.items] == ["a", "b", "c"]
    assert first.metadata["remainingItemCount"] == 1
    assert "continue" not in second.metadata
    assert first.metadata["resourceVersion"] == second.metadata["resourceVersion"]


def test_list_at_an_exact_revision_and_bad_revisions(bench, widget):
    made = bench.create(WD, widget("a"))
    bench.create(WD, widget("b"))
    resource, store = bench.resource(WD), bench.api.store
    exact = ListOptions(resource_version=made["metadata"]["resourceVersion"], exact=True)
    assert len(list_page(store, resource, exact).items) == 1
    with pytest.raises(Timeout):
        list_page(store, resource, ListOptions(resource_version="99999"))
    with pytest.raises(BadRequest):
        list_page(store, resource, ListOptions(resource_version="new"))
    with pytest.raises(BadRequest):
        list_page(store, resource, ListOptions(continue_token="!!"))


async def test_a_selector_makes_objects_appear_and_vanish(bench, widget):
    bench.create(WD, widget("a"))
    options = WatchOptions(selector=Selector(labels=parse_labels("tier=gold")))
    watch = Watch(bench.api.store, bench.resource(WD), options)
    for tier in ("gold", "gold", "silver"):
        bench.patch(WD, "a", {"metadata": {"labels": {"tier": tier}, "annotations": {"n": tier}}})
    bench.patch(WD, "a", {"metadata": {"labels": {"tier": "gold"}}})
    assert await drain(watch) == [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "a")]


async def test_watch_from_a_revision_and_without_one(bench, widget):
    first = bench.create(WD, widget("a"))
    bench.patch(WD, "a", {"spec": {"maxWorkers": 9}})
    version = first["metadata"]["resourceVersion"]
    from_then = Watch(bench.api.store, bench.resource(WD), WatchOptions(resource_version=version))
    from_now = Watch(bench.api.store, bench.resource(WD), WatchOptions())
    assert await drain(from_then) == [("MODIFIED", "a")]
    assert await drain(from_now) == [("ADDED", "a")]
    from_now.close()
    bench.create(WD, widget("b"))
    assert await drain(from_now) == []
    assert await drain(from_then) == [("ADDED", "b")]


async def test_initial_events_end_with_a_bookmark(bench, widget):
    bench.create(WD, widget("a"))
    options = WatchOptions(send_initial=True, version_match="NotOlderThan", bookmarks=True)
    check(options)
    watch = Watch(bench.api.store, bench.resource(WD), options)
    assert (await watch.next(1)).type == "ADDED"
    mark = await watch.next(1)
    assert mark.type == "BOOKMARK"
    assert mark.object["metadata"]["annotations"] == {INITIAL_EVENTS_END: "true"}
    assert mark.object["metadata"]["resourceVersion"] == str(bench.api.store.revision)
    assert "annotations" not in watch.bookmark().object["metadata"]


def test_initial_events_need_a_version_match():
    with pytest.raises(Invalid):
        check(WatchOptions(send_initial=True))
    with pytest.raises(Invalid):
        check(WatchOptions(version_match="NotOlderThan"))


@pytest.mark.parametrize("version", ["2", "999999"])
async def test_lost_history_and_another_servers_revisions_are_gone(make_bench, widget, version):
    bench = make_bench(history=2)
    for name in ("a", "b", "c"):
        bench.create(WD, widget(name))
    watch = Watch(bench.api.store, bench.resource(WD), WatchOptions(resource_version=version))
    error = await watch.next(1)
    assert (error.type, error.object["code"], error.object["reason"]) == ("ERROR", 410, "Expired")
