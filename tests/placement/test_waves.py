from flexpert_placement.types import ExpertId, Placement
from flexpert_placement.waves import next_wave


def placed(rows: dict[int, str]) -> Placement:
    """Expert index → workers, one letter each."""
    return {ExpertId(0, index): {worker: 1 / len(row) for worker in row} for index, row in rows.items()}


def test_what_fits_is_one_wave() -> None:
    current, target = placed({0: "a", 1: "b"}), placed({0: "b", 1: "a"})
    assert next_wave(current, target, {"a": 2, "b": 2}) == target


def test_what_does_not_fit_comes_in_steps() -> None:
    """Three experts change sides with one free slot each: one at a time in each direction."""
    current = placed({0: "a", 1: "a", 2: "b", 3: "b"})
    target = placed({0: "b", 1: "b", 2: "a", 3: "a"})
    slots = {"a": 3, "b": 3}
    steps = []
    while current != target:
        current = next_wave(current, target, slots)
        steps.append(current)
        assert all(row for row in current.values())
    assert len(steps) == 2
    assert steps[0] == placed({0: "b", 1: "a", 2: "a", 3: "b"})


def test_drops_make_room_for_the_next_wave() -> None:
    current = placed({0: "ab", 1: "a"})
    target = placed({0: "a", 1: "b"})
    slots = {"a": 2, "b": 1}
    first = next_wave(current, target, slots)
    assert first == placed({0: "a", 1: "a"})
    assert next_wave(first, target, slots) == target


def test_experts_that_nobody_holds_come_first() -> None:
    current, target = placed({0: "a", 1: ""}), placed({0: "b", 1: "b"})
    assert next_wave(current, target, {"a": 1, "b": 1}) == placed({0: "a", 1: "b"})


def test_where_no_step_fits_the_target_stands() -> None:
    """The pool controller refuses it then, and says which worker lacks what."""
    current, target = placed({0: "a", 1: "b"}), placed({0: "b", 1: "a"})
    assert next_wave(current, target, {"a": 1, "b": 1}) == target
