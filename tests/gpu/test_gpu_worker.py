"""A whole worker on a GPU: the tests of `tests/memory/test_worker_on_device.py`, with the fixtures of this folder."""

import pytest
from test_worker_on_device import (  # noqa: F401
    folder,
    model,
    test_a_second_process_attaches_and_one_that_was_killed_comes_back_without_a_byte_copied,
    test_a_worker_on_another_device_than_its_owner_is_refused,
    test_a_worker_without_an_owner_process_has_its_pages_on_its_device,
    test_experts_are_filled_mapped_and_computed_from_as_on_the_cpu,
    test_pages_are_copied_between_two_owners_of_devices,
    test_slots_are_remapped_beside_dispatches_of_their_neighbours,
    test_what_a_worker_says_it_has_room_for_fits_with_its_padding,
)

pytestmark = pytest.mark.gpu
"""Whatever this module runs needs a device, also the tests that it takes from another."""
