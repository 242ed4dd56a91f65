"""The page protocol on a GPU: the tests of `tests/memory/test_page_backend.py`, with the fixtures of this folder."""

import pytest
from test_page_backend import (  # noqa: F401
    arena,
    page,
    test_a_descriptor_that_is_no_page_is_refused_and_closed,
    test_a_loan_is_the_same_memory_and_has_the_same_identity,
    test_a_mapped_slot_shows_the_page_and_keeps_its_address,
    test_a_mapping_outlives_the_page_that_was_closed,
    test_a_page_is_padded_and_its_checksum_is_of_the_bytes_alone,
    test_slots_lie_one_behind_the_other_and_do_not_disturb_each_other,
    test_two_hundred_cycles_leave_nothing_behind,
    test_what_is_vacated_while_somebody_reads_it_comes_back,
)

pytestmark = pytest.mark.gpu
"""Whatever this module runs needs a device, also the tests that it takes from another."""
