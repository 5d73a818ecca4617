"""The suite itself: each of these broken backends is caught by the test that is named beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from rpc.errors import QueueFull, RpcTimeout
from rpc.testing import site as site_module
from rpc.testing.conformance import Conformance, Site

from . import mutants as m
from .mutants import Patch

C = Conformance
MUTANTS: list[tuple[Callable[[Patch], None], Callable[..., None], tuple[Any, ...]]] = [
    (m.loses_every_third, C.test_each_request_gets_its_own_replies, ()),
    (m.sends_twice, C.test_one_of_the_receivers_gets_each_message, ()),
    (m.is_last_in_first_out, C.test_first_in_first_out, ()),
    (m.ignores_priority, C.test_queues_are_served_in_order_of_priority, ()),
    (m.decodes_bodies, C.test_bodies_are_opaque, (bytes(range(256)),)),
    (m.drops_headers, C.test_headers_are_carried, ()),
    (m.mixes_up_replies, C.test_each_request_gets_its_own_replies, ()),
    (m.reorders_replies, C.test_replies_come_in_order, ()),
    (m.holds_replies_until_the_end, C.test_a_reply_can_leave_before_the_handler_is_done, ()),
    (m.rounds_timeouts_to_seconds, C.test_receive_times_out_and_stays_usable, (0.3,)),
    (m.dies_of_a_timeout, C.test_receive_times_out_and_stays_usable, (0.05,)),
    (m.never_updates_ttl, C.test_the_receiver_is_told_how_much_time_is_left, ()),
    (
        m.dies_of_a_handler_that_raises,
        C.test_the_loop_survives_a_handler_that_raises_and_the_caller_is_told,
        (),
    ),
    (m.runs_one_at_a_time, C.test_so_many_run_at_a_time_and_no_more, ()),
    (m.runs_more_than_it_may, C.test_so_many_run_at_a_time_and_no_more, ()),
    (m.never_withdraws, C.test_what_nobody_waits_for_any_more_is_not_started, ()),
    (m.never_withdraws, C.test_a_running_handler_is_told_that_nobody_waits_any_more, ()),
    (m.cancels_what_was_answered, C.test_a_handler_that_was_answered_is_not_cancelled, ()),
    (m.forgets_what_was_sent_when_it_stops, C.test_stop_finishes_what_it_started_and_takes_nothing_new, ()),
    (m.takes_one_more_after_stop, C.test_stop_finishes_what_it_started_and_takes_nothing_new, ()),
    (m.splits_topics, C.test_every_receiver_of_a_topic_gets_each_message, ()),
    (m.copies_for_every_member_of_a_group, C.test_a_group_shares_one_copy, ()),
    (
        m.forgets_a_subscription_that_nobody_serves,
        C.test_a_durable_subscription_keeps_what_comes_while_nobody_serves_it,
        (),
    ),
    (m.keeps_what_nobody_subscribes_to, C.test_what_nobody_subscribes_to_any_more_is_not_kept, ()),
    (m.says_that_it_arrived_where_it_was_sent, C.test_a_handler_knows_where_its_message_arrived, ()),
    (m.gives_a_lock_to_everybody, C.test_a_lock_has_one_owner_until_it_is_given_back, ()),
    (m.lets_others_release_a_lock, C.test_a_lock_has_one_owner_until_it_is_given_back, ()),
    (m.never_ends_a_lease, C.test_a_lock_is_lost_with_its_owner, ()),
    (m.never_says_that_it_has_ended, C.test_it_tells_whether_it_is_connected, ()),
    (m.delays_nothing, C.test_a_delayed_message_comes_when_it_is_due_and_not_before, ()),
    (m.delays_nothing, C.test_a_request_may_be_delayed, ()),
    (m.delivers_first_what_is_due_last, C.test_delayed_messages_come_in_the_order_in_which_they_are_due, ()),
    (m.loses_what_is_delayed, C.test_a_delay_passes_while_nobody_serves, ()),
    (m.loses_what_is_delayed, C.test_a_postponed_message_that_nobody_waits_for_comes_again_too, ()),
    (m.delivers_what_was_withdrawn_meanwhile, C.test_what_is_withdrawn_while_it_is_delayed_does_not_come, ()),
    (
        m.delivers_what_was_withdrawn_meanwhile,
        C.test_what_is_withdrawn_between_two_attempts_does_not_come_again,
        (),
    ),
    (m.delivers_again_what_it_was, C.test_a_postponed_message_comes_again_as_it_was_changed, ()),
    (m.postpones_nothing, C.test_a_postponed_message_comes_again_as_it_was_changed, ()),
    (m.buries_without_an_answer, C.test_a_buried_message_is_answered_and_kept, ()),
    (m.acknowledges_what_it_could_not_bury, C.test_what_could_not_be_buried_is_delivered_again, ()),
    (
        m.acknowledges_what_it_could_not_bury,
        C.test_what_a_durable_subscription_could_not_bury_is_delivered_again,
        (),
    ),
    (m.shows_the_letters_of_all_queues, C.test_a_buried_message_is_answered_and_kept, ()),
    (m.shows_the_oldest_letter_first, C.test_the_last_dead_letter_comes_first, ()),
    (m.revives_and_keeps, C.test_a_revived_letter_is_delivered_again_and_is_gone, ()),
    (m.revives_the_key_too, C.test_a_revived_letter_is_delivered_again_and_is_gone, ()),
    (m.says_that_it_did, C.test_a_dropped_letter_is_forgotten, ()),
    (m.does_all_with_a_key, C.test_a_second_request_with_a_key_gets_the_reply_of_the_first, ("is done",)),
    (m.answers_only_the_first, C.test_a_second_request_with_a_key_gets_the_reply_of_the_first, ("runs",)),
    (m.shares_keys_among_queues, C.test_a_key_belongs_to_its_queue, ()),
    (m.lets_the_expired_keep_their_key, C.test_a_first_that_has_expired_does_not_block_a_second, (False,)),
    (
        m.remembers_that_the_first_was_refused,
        C.test_a_first_that_has_expired_does_not_block_a_second,
        (True,),
    ),
    (m.listens_to_the_first_alone_for_how_long, C.test_whoever_waits_longest_decides_when_it_expires, ()),
    (m.does_all_with_a_key, C.test_what_nobody_waits_for_is_answered_to_those_who_ask_later, ()),
    (
        m.withdraws_what_others_wait_for,
        C.test_a_caller_that_leaves_does_not_take_along_what_others_wait_for,
        (),
    ),
    (m.says_that_every_queue_is_served, C.test_it_is_known_whether_a_queue_is_served, ()),
    (m.forgets_whom_it_serves_while_busy, C.test_it_is_known_whether_a_queue_is_served, ()),
    (m.has_always_room, C.test_a_full_queue_refuses_more_until_there_is_room, ()),
    (m.counts_all_queues_as_one, C.test_a_full_queue_refuses_more_until_there_is_room, ()),
]


CAUGHT = (AssertionError, pytest.fail.Exception, RpcTimeout, QueueFull, KeyError, ValueError)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: Patch) -> None:
    monkeypatch.setattr(site_module, "PATIENCE", 1.5)


def run(test: Callable[..., None], arguments: tuple[Any, ...], mutate: Callable[[], None]) -> None:
    with Site(f"memory://{uuid4().hex}") as site:
        mutate()
        test(Conformance(), site, *arguments)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("mutate", "test", "arguments"), MUTANTS, ids=[mutate.__name__ for mutate, _, _ in MUTANTS]
)
def test_the_suite_catches_a_backend_that(
    mutate: Callable[[Patch], None],
    test: Callable[..., None],
    arguments: tuple[Any, ...],
    monkeypatch: Patch,
) -> None:
    with pytest.raises(CAUGHT):
        run(test, arguments, lambda: mutate(monkeypatch))


@pytest.mark.parametrize(
    ("test", "arguments"),
    sorted({(test, arguments) for _, test, arguments in MUTANTS}, key=lambda pair: pair[0].__name__),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_lets_one_pass_that_is_not_broken(test: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    run(test, arguments, lambda: None)
