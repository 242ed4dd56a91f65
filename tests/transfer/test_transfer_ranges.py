"""What is missing, on its way and arrived of a page."""

from flexpert_workers.transfer.ranges import Missing


def test_everything_is_asked_for_in_order_and_once():
    missing = Missing([(0, 100)])
    asked = [missing.ask(40) for _ in range(3)]
    assert [each for _, each in asked] == [(0, 40), (40, 80), (80, 100)]
    assert (missing.next_length(40), missing.asked_bytes) == (0, 100)
    for number, _ in asked:
        missing.arrived(number)
    assert missing.outstanding() == ()
    assert missing.arrived_up_to(100) == 100


def test_what_is_lost_is_asked_for_again_and_nothing_else():
    missing = Missing([(0, 100)])
    numbers = [missing.ask(25)[0] for _ in range(4)]
    missing.arrived(numbers[0])
    missing.arrived(numbers[2])
    missing.all_lost()
    assert missing.outstanding() == ((25, 50), (75, 100))
    assert missing.arrived_up_to(100) == 25
    assert [missing.ask(100)[1] for _ in range(2)] == [(25, 50), (75, 100)]


def test_one_lost_range_goes_first():
    missing = Missing([(0, 100)])
    first, second = missing.ask(20)[0], missing.ask(20)[0]
    missing.lost(first)
    missing.arrived(second)
    assert missing.ask(50)[1] == (0, 20)
    assert missing.ask(50)[1] == (40, 90)
