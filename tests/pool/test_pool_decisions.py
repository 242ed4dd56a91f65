"""The pure modules: tables, recovery, reconciliation of slots, predictions, epochs, what the inspection printed."""

import json
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from flexpert_workers import errors
from flexpert_workers.messages.control import WorkerState
from flexpert_workers.pool.exceptions import InvalidPlan, NotGranted
from flexpert_workers.pool.inspector import read_answer
from flexpert_workers.pool.keeper import TableKeeper
from flexpert_workers.pool.loads import LoadLedger
from flexpert_workers.pool.predict import OVERHEAD_S, plan
from flexpert_workers.pool.reconcile import SlotFailures, decide_roles, reconcile
from flexpert_workers.pool.recovery import needs_recovery, plan_recovery
from flexpert_workers.pool.state import Cause, Condition, LaunchedWorker, ModelFacts, Move, Request, Slot, Worker
from flexpert_workers.pool.tables import build_table, next_epoch, placement_of, replicas_gone, without_replicas
from flexpert_workers.routing import NO_EPOCH, Epoch, RoutingTable

MODEL = ModelFacts("file:///m", "", "Auto", "digest", "MixtralForCausalLM", 1, 4, 2, 10)
FIRST = Epoch(1, 1)


def worker(name: str, *indices: int, condition: Condition = Condition.READY, room: int = 8, **facts: Any) -> Worker:
    experts = tuple((0, index) for index in indices)
    state = WorkerState(
        worker=name,
        incarnation=f"i-{name}",
        pool="uid",
        digest="digest",
        endpoint=f"tcp://{name}",
        control_endpoint=f"tcp://{name}/control",
        pod="pod",
        node="node",
        pid=1,
        memory_bytes=10 * room,
        resident_bytes=10 * len(experts),
        experts=experts,
        table=b"",
        in_flight=0,
    )
    return Worker(name, facts.pop("slot", Slot(f"slot-{name}")), condition, state, **facts)


def on(**workers: str) -> dict[tuple[int, int], dict[str, float]]:
    """`on(a="01", b="1")`: expert 0 on a, expert 1 on both, with equal shares."""
    placement: dict[tuple[int, int], dict[str, float]] = {}
    for name, indices in workers.items():
        for index in indices:
            placement.setdefault((0, int(index)), {})[name] = 1.0
    return {expert: {name: 1 / len(shares) for name in shares} for expert, shares in placement.items()}


def table(placement: Any, *workers: Worker, epoch: Epoch = FIRST) -> RoutingTable:
    return build_table("uid", MODEL, epoch, "op", placement, {one.id: one.address for one in workers})


def test_a_table_and_its_placement_are_the_same() -> None:
    placement = on(a="013", b="12")
    made = table(placement, worker("a"), worker("b"), worker("c"))
    assert placement_of(made) == placement
    assert [address.worker for address in made.workers] == ["a", "b"], "only those that hold something are named"
    assert made.experts_without_replica() == ()
    assert placement_of(None) == {}


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (on(a="012"), "layer 0 expert 3 would have no replica"),
        ({**on(a="012"), (0, 3): {}}, "layer 0 expert 3 would have no replica"),
        (on(a="0123", x="1"), "placed on x, which is not a live worker"),
        ({**on(a="0123"), (7, 0): {"a": 1.0}}, "layer 7 expert 0 is not an expert"),
        ({**on(a="0123"), (0, 1): {"a": 0.7}}, "do not add up to 1"),
    ],
)
def test_no_table_lacks_a_live_replica(placement: Any, message: str) -> None:
    with pytest.raises(InvalidPlan, match=message):
        table(placement, worker("a"))


def test_shares_of_what_remains_add_up() -> None:
    placement = {(0, 0): {"a": 0.5, "b": 0.3, "c": 0.2}, (0, 1): {"a": 1.0}, (0, 2): {"b": 1.0}}
    gone = replicas_gone(placement, {"b": frozenset({(0, 0), (0, 2)}), "c": frozenset({(0, 0)})})
    assert gone == {((0, 0), "a"), ((0, 1), "a")}
    kept, lost = without_replicas(placement, gone)
    assert lost == {(0, 1)}
    assert kept[0, 0] == pytest.approx({"b": 0.6, "c": 0.4})
    assert kept[0, 2] == {"b": 1.0}


def test_epochs_only_grow() -> None:
    assert next_epoch(1, NO_EPOCH) == Epoch(1, 1)
    assert next_epoch(1, Epoch(1, 4)) == Epoch(1, 5)
    assert next_epoch(3, Epoch(1, 4)) == Epoch(3, 5)


def test_terms_are_granted_once() -> None:
    keeper = TableKeeper()
    assert keeper.grant(2)
    assert not keeper.grant(2), "the same again is no news"
    with pytest.raises(NotGranted):
        keeper.grant(1)
    assert keeper.adopt(table(on(a="0123"), worker("a"), epoch=Epoch(3, 9)))
    assert keeper.term == 0, "somebody else published under a higher term"
    with pytest.raises(NotGranted):
        keeper.grant(3)
    assert keeper.grant(4)
    assert keeper.foreign_term
    assert keeper.next_epoch() == Epoch(4, 10)
    assert keeper.next_epoch() == Epoch(4, 11), "a number is used once"
    assert not keeper.adopt(table(on(a="0123"), worker("a"), epoch=Epoch(3, 8)))


def test_lost_experts_go_to_the_least_loaded_with_room() -> None:
    workers = [worker("a", 0, condition=Condition.LOST), worker("b", 1, 2), worker("c", 3), worker("d", room=0)]
    loads = {(0, 0): 5.0, (0, 1): 1.0, (0, 2): 1.0, (0, 3): 9.0}
    placement = on(a="0", b="12", c="3")
    assert needs_recovery(placement, workers)
    recovery = plan_recovery(placement, workers, 10, loads)
    assert recovery.target == {**on(b="12", c="3"), (0, 0): {"b": 1.0}}
    assert recovery.moves == (Move((0, 0), "b", ("",)),)
    assert recovery.unplaced == ()


def test_a_copy_that_is_there_is_used() -> None:
    workers = [worker("a", condition=Condition.LOST), worker("b", 1, 2, 3), worker("c", 0, 1, 2, 3, room=4)]
    recovery = plan_recovery(on(a="0", b="123"), workers, 10, {})
    assert recovery.target[0, 0] == {"c": 1.0}, "it holds a copy that no table names"
    assert recovery.moves == ()


def test_heavy_experts_spread() -> None:
    workers = [worker("a", condition=Condition.LOST), worker("b"), worker("c")]
    loads = {(0, 0): 8.0, (0, 1): 7.0, (0, 2): 2.0, (0, 3): 1.0}
    recovery = plan_recovery(on(a="0123"), workers, 10, loads)
    held = {name: sum(loads[expert] for expert, at in recovery.target.items() if name in at) for name in "bc"}
    assert held == {"b": 9.0, "c": 9.0}


def test_draining_workers_are_the_last_resort() -> None:
    lost, draining = worker("a", condition=Condition.LOST), worker("b", condition=Condition.DRAINING)
    assert plan_recovery(on(a="0123"), [lost, draining, worker("c")], 10, {}).target == on(c="0123")
    assert plan_recovery(on(a="0123"), [lost, draining], 10, {}).target == on(b="0123")


def test_what_finds_no_room_is_named() -> None:
    workers = [worker("a", condition=Condition.LOST), worker("b", 0, room=2)]
    recovery = plan_recovery(on(a="123", b="0"), workers, 10, {(0, 2): 3.0})
    assert recovery.moves == (Move((0, 2), "b", ("",)),), "the most used first"
    assert recovery.unplaced == ((0, 1), (0, 3))


def test_a_replica_that_is_not_resident_is_lost() -> None:
    assert needs_recovery(on(a="01", b="23"), [worker("a", 0), worker("b", 2, 3)])
    assert not needs_recovery(on(a="01", b="23"), [worker("a", 0, 1), worker("b", 2, 3)])


def test_one_worker_per_slot() -> None:
    slots = [Slot("slot-a"), Slot("slot-b"), Slot("slot-c"), Slot("slot-d")]
    launched = [LaunchedWorker("a", "slot-a", "x"), LaunchedWorker("foreign", "slot-b", "x")]
    dead = worker("d", condition=Condition.LOST, lost_at=0.0)
    failures = {"slot-d": SlotFailures(count=2, at=10.0)}
    actions = reconcile(slots, launched, [worker("a"), dead], (), failures, now=11.0, lost_kept_s=60.0)
    assert [slot.id for slot in actions.start] == ["slot-c"], "slot-d waits after two failures"
    later = reconcile(slots, launched, [worker("a"), dead], (), failures, now=12.0, lost_kept_s=60.0)
    assert [slot.id for slot in later.start] == ["slot-c", "slot-d"]


def test_who_vanished_is_dead_and_who_is_drained_and_empty_is_stopped() -> None:
    slots = [Slot("slot-a"), Slot("slot-b"), Slot("slot-c")]
    workers = [
        worker("a"),
        worker("b", condition=Condition.DRAINING),
        worker("c", 0, condition=Condition.DRAINING),
    ]
    launched = [LaunchedWorker("b", "slot-b", "x"), LaunchedWorker("c", "slot-c", "x")]
    actions = reconcile(slots, launched, workers, {"c"}, {}, now=0.0, lost_kept_s=60.0)
    assert actions.vanished == ("a",)
    assert actions.stop == ("b",)
    assert actions.start == ()


def test_workers_are_forgotten_when_they_matter_no_more() -> None:
    stopped = worker("s", condition=Condition.DRAINING, stopped=True)
    lost = worker("l", condition=Condition.LOST, lost_at=0.0)
    named = worker("n", condition=Condition.LOST, lost_at=0.0)
    here = reconcile([Slot("slot-s")], [], [stopped, lost, named], {"n"}, {}, now=61.0, lost_kept_s=60.0)
    assert here.forget == ("l",)
    gone = reconcile([], [], [stopped, lost, named], {"n"}, {}, now=1.0, lost_kept_s=60.0)
    assert gone.forget == ("s",)


def test_the_slot_of_a_worker_that_died_while_it_was_drained_stays_empty() -> None:
    slots = [Slot("slot-d")]
    lost = worker("d", condition=Condition.LOST, lost_at=0.0, leaving=True)
    named = reconcile(slots, [], [lost], {"d"}, {}, now=61.0, lost_kept_s=60.0)
    assert (named.start, named.emptied, named.forget) == ((), (), ()), "its experts are placed elsewhere first"
    empty = reconcile(slots, [], [lost], (), {}, now=61.0, lost_kept_s=60.0)
    assert (empty.start, empty.emptied, empty.forget) == ((), ("d",), ())


def test_a_worker_that_is_drained_while_it_starts_is_stopped() -> None:
    """Not one that an earlier controller has started: what that one holds is not known before it answers."""
    slots, launched = [Slot("slot-s")], [LaunchedWorker("s", "slot-s", "")]
    starting = Worker("s", Slot("slot-s"), Condition.DRAINING, begun_here=True)
    assert reconcile(slots, launched, [starting], (), {}, now=0.0, lost_kept_s=60.0).stop == ("s",)
    found = Worker("s", Slot("slot-s"), Condition.DRAINING)
    assert reconcile(slots, launched, [found], (), {}, now=0.0, lost_kept_s=60.0).stop == ()


def test_a_worker_whose_slot_went_while_it_started_is_given_up() -> None:
    launched = [LaunchedWorker("s", "slot-s", ""), LaunchedWorker("a", "slot-a", "x")]
    workers = [Worker("s", Slot("slot-s"), Condition.STARTING), worker("a")]
    assert reconcile([], launched, workers, (), {}, now=0.0, lost_kept_s=60.0).vanished == ("s",)


def request(target: Any, *moves: Move) -> Request:
    return Request("op", Cause.SCALE, Epoch(1, 1), moves, target)


def test_a_prediction_counts_what_is_not_there_yet() -> None:
    workers = [worker("a", 0, 1, 2, 3), worker("b", 3)]
    moves = (Move((0, 2), "b", ("a", "")), Move((0, 3), "b", ("a", "")))
    prediction = plan(
        request(on(a="01", b="23"), *moves), MODEL, workers, on(a="0123"), bytes_per_second=100.0
    ).prediction
    assert (prediction.moved_experts, prediction.moved_bytes) == (1, 10)
    assert prediction.seconds == pytest.approx(OVERHEAD_S + 0.1)
    assert prediction.peak_bytes == {"a": 40, "b": 20}
    assert prediction.refusal == ""


@pytest.mark.parametrize(
    ("target", "moves", "message"),
    [
        (on(a="01", b="23"), (), "no move brings it there"),
        (on(a="0123"), (Move((0, 9), "b", ()),), "no such expert"),
        (on(a="0123"), (Move((0, 1), "x", ()),), "no such expert or live worker"),
        (on(a="0123", b="0123"), tuple(Move((0, index), "b", ("a",)) for index in range(4)), "raise memoryPerWorker"),
    ],
)
def test_plans_that_cannot_be_carried_out(target: Any, moves: Any, message: str) -> None:
    workers = [worker("a", 0, 1, 2, 3), worker("b", room=3)]
    assert message in plan(request(target, *moves), MODEL, workers, on(a="0123"), 100.0).prediction.refusal


def test_loads_count_what_was_added_since() -> None:
    ledger = LoadLedger(since=100.0)
    ledger.note("adopted", (5, 5), adopted=True)
    ledger.note("new", (1, 0), adopted=False)
    ledger.note("adopted", (5, 9), adopted=True)
    assert ledger.total(2) == (1, 4)


def test_the_inspection_is_read() -> None:
    facts = {"architecture": "MixtralForCausalLM", "digest": "d", "layers": 4, "experts": 16, "experts_per_token": 2}
    printed = "a warning\n" + json.dumps({**facts, "expert_bytes": 123, "context_length": 128})
    answer = read_answer(printed, "", "file:///m", "main", "Auto")
    assert (answer.layers, answer.experts, answer.expert_bytes, answer.revision) == (4, 16, 123, "main")


@pytest.mark.parametrize("kind", ["CheckpointNotFound", "CorruptCheckpoint", "UnsupportedArchitecture"])
def test_what_the_inspection_refuses_is_raised(kind: str) -> None:
    with pytest.raises(getattr(errors, kind), match="say so"):
        read_answer(json.dumps({"error": kind, "message": "say so"}), "", "file:///m", "", "Auto")
    with pytest.raises(errors.CheckpointError, match="out of memory"):
        read_answer("", "Traceback\nout of memory", "file:///m", "", "Auto")


def roles(workers: list[Worker], named: str, wanted: int | None, **more: Any) -> dict[str, str]:
    return {name: str(condition) for name, condition in decide_roles(workers, set(named), wanted, **more).items()}


def standby(name: str, **facts: Any) -> Worker:
    return worker(name, condition=Condition.STANDBY, **facts)


def test_as_many_serve_as_are_wanted() -> None:
    workers = [standby("a"), standby("b"), standby("c"), worker("d", condition=Condition.LOST)]
    assert roles(workers, "", 2) == {"a": "READY", "b": "READY"}
    assert roles(workers, "", None) == {"a": "READY", "b": "READY", "c": "READY"}
    assert roles(workers, "", 0) == {}


def test_who_holds_experts_serves_whatever_the_number_is() -> None:
    workers = [worker("a", 0), worker("b", 1), standby("c")]
    assert roles(workers, "ab", 1) == {}
    assert roles(workers, "abc", 1) == {"c": "READY"}


def test_a_lost_worker_is_stood_in_for_and_a_drained_one_is_not_counted() -> None:
    lost = worker("a", condition=Condition.LOST)
    assert roles([lost, worker("b", 1), standby("c"), standby("d", ready_at=1.0)], "ab", 2) == {"c": "READY"}
    leaving = worker("a", 0, condition=Condition.DRAINING)
    assert roles([leaving, worker("b", 1), standby("c")], "ab", 1) == {}


def test_promoted_workers_go_back_when_they_are_not_wanted_after_all() -> None:
    workers = [worker("a", 0), worker("b"), worker("c")]
    assert roles(workers, "a", 2) == {"c": "STANDBY"}
    assert roles(workers, "a", 3) == {}


def test_the_standby_beside_the_lost_pages_comes_first() -> None:
    beside = standby("z")
    assert beside.state is not None
    beside = replace(beside, state=structs.replace(beside.state, domain="here"))
    lost = worker("a", condition=Condition.LOST)
    assert roles([lost, standby("b"), beside], "a", 1, domains={"here"}) == {"z": "READY"}


def test_lost_experts_do_not_go_to_a_standby() -> None:
    workers = [worker("a", condition=Condition.LOST), worker("b", 1, room=1), standby("c")]
    assert plan_recovery(on(a="0", b="1"), workers, 10, {}).unplaced == ((0, 0),)
    asked = request(on(b="1", c="023"), *(Move((0, index), "c") for index in (0, 2, 3)))
    assert "placed on c" in plan(asked, MODEL, workers, {}, 100.0).prediction.refusal


def in_domain(one: Worker, domain: str) -> Worker:
    assert one.state is not None
    return replace(one, state=structs.replace(one.state, domain=domain))


def test_lost_experts_are_attached_where_their_pages_are() -> None:
    """`b` shares the dead worker's page owner and is the busier one."""
    lost = in_domain(worker("a", condition=Condition.LOST), "here")
    busy, free = in_domain(worker("b", 1, 2, 3), "here"), in_domain(worker("c"), "there")
    recovery = plan_recovery(on(a="0", b="123"), [lost, busy, free], 10, {})
    assert recovery.target[0, 0] == {"b": 1.0}
    full = in_domain(worker("b", 1, 2, 3, room=3), "here")
    assert plan_recovery(on(a="0", b="123"), [lost, full, free], 10, {}).target[0, 0] == {"c": 1.0}
