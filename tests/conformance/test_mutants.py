"""The suite itself: each of these broken backends is caught by the test that is named beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from rpc.errors import QueueFull, RpcTimeout
from rpc.testing import site as site_module
from rpc.testing.conformance import Conformance

from . import mutants as m
from .mutants import BrokenSite, HandsBack, Mutant

C = Conformance
MUTANTS: list[tuple[type[Mutant], Callable[..., None], tuple[Any, ...]]] = [
    (m.LosesEveryThird, C.test_each_request_gets_its_own_replies, ()),
    (m.SendsTwice, C.test_one_of_the_receivers_gets_each_message, ()),
    (m.IsLastInFirstOut, C.test_first_in_first_out, ()),
    (m.IgnoresPriority, C.test_queues_are_served_in_order_of_priority, ()),
    (m.DecodesBodies, C.test_bodies_are_opaque, (bytes(range(256)),)),
    (m.DropsHeaders, C.test_headers_are_carried, ()),
    (m.MixesUpReplies, C.test_each_request_gets_its_own_replies, ()),
    (m.ReordersReplies, C.test_replies_come_in_order, ()),
    (m.HoldsRepliesUntilTheEnd, C.test_a_reply_can_leave_before_the_handler_is_done, ()),
    (m.FinishesOnlyInItsThread, C.test_another_thread_may_end_it_before_its_handler_returns, ()),
    (m.RoundsTimeoutsToSeconds, C.test_receive_times_out_and_stays_usable, (0.3,)),
    (m.DiesOfATimeout, C.test_receive_times_out_and_stays_usable, (0.05,)),
    (m.NeverUpdatesTtl, C.test_the_receiver_is_told_how_much_time_is_left, ()),
    (
        m.DiesOfAHandlerThatRaises,
        C.test_the_loop_survives_a_handler_that_raises_and_the_caller_is_told,
        (),
    ),
    (m.RunsOneAtATime, C.test_so_many_run_at_a_time_and_no_more, ()),
    (m.RunsMoreThanItMay, C.test_so_many_run_at_a_time_and_no_more, ()),
    (m.NeverWithdraws, C.test_what_nobody_waits_for_any_more_is_not_started, ()),
    (m.NeverWithdraws, C.test_a_running_handler_is_told_that_nobody_waits_any_more, ()),
    (m.CancelsWhatWasAnswered, C.test_a_handler_that_was_answered_is_not_cancelled, ()),
    (m.ForgetsWhatWasSentWhenItStops, C.test_stop_finishes_what_it_started_and_takes_nothing_new, ()),
    (m.TakesOneMoreAfterStop, C.test_stop_finishes_what_it_started_and_takes_nothing_new, ()),
    (m.SplitsTopics, C.test_every_receiver_of_a_topic_gets_each_message, ()),
    (m.CopiesForEveryMemberOfAGroup, C.test_a_group_shares_one_copy, ()),
    (
        m.ForgetsASubscriptionThatNobodyServes,
        C.test_a_durable_subscription_keeps_what_comes_while_nobody_serves_it,
        (),
    ),
    (m.KeepsWhatNobodySubscribesTo, C.test_what_nobody_subscribes_to_any_more_is_not_kept, ()),
    (m.SaysThatItArrivedWhereItWasSent, C.test_a_handler_knows_where_its_message_arrived, ()),
    (m.GivesALockToEverybody, C.test_a_lock_has_one_owner_until_it_is_given_back, ()),
    (m.LetsOthersReleaseALock, C.test_a_lock_has_one_owner_until_it_is_given_back, ()),
    (m.NeverEndsALease, C.test_a_lock_is_lost_with_its_owner, ()),
    (m.NeverSaysThatItHasEnded, C.test_it_tells_whether_it_is_connected, ()),
    (m.DelaysNothing, C.test_a_delayed_message_comes_when_it_is_due_and_not_before, ()),
    (m.DelaysNothing, C.test_a_request_may_be_delayed, ()),
    (m.DeliversFirstWhatIsDueLast, C.test_delayed_messages_come_in_the_order_in_which_they_are_due, ()),
    (m.LosesWhatIsDelayed, C.test_a_delay_passes_while_nobody_serves, ()),
    (m.LosesWhatIsDelayed, C.test_a_postponed_message_that_nobody_waits_for_comes_again_too, ()),
    (m.NeverWithdraws, C.test_what_is_withdrawn_while_it_is_delayed_does_not_come, ()),
    (
        m.NeverWithdraws,
        C.test_what_is_withdrawn_between_two_attempts_does_not_come_again,
        (),
    ),
    (m.DeliversAgainWhatItWas, C.test_a_postponed_message_comes_again_as_it_was_changed, ()),
    (m.FinishesTheNextAttempt, C.test_who_postponed_a_message_cannot_finish_the_next_attempt, ()),
    (m.PostponesNothing, C.test_a_postponed_message_comes_again_as_it_was_changed, ()),
    (
        m.ForgetsThatItWasWithdrawn,
        C.test_what_is_withdrawn_in_the_middle_of_an_attempt_is_not_tried_again,
        (),
    ),
    (m.BuriesWithoutAnAnswer, C.test_a_buried_message_is_answered_and_kept, ()),
    (m.AcknowledgesWhatItCouldNotBury, C.test_what_could_not_be_buried_is_delivered_again, ()),
    (
        m.AcknowledgesWhatItCouldNotBury,
        C.test_what_a_durable_subscription_could_not_bury_is_delivered_again,
        (),
    ),
    (m.ShowsTheLettersOfAllQueues, C.test_a_buried_message_is_answered_and_kept, ()),
    (m.ShowsTheOldestLetterFirst, C.test_the_last_dead_letter_comes_first, ()),
    (m.ForgetsWhatHasExpired, C.test_what_expires_and_nobody_waits_for_is_a_dead_letter, ()),
    (m.RevivesAndKeeps, C.test_a_revived_letter_is_delivered_again_and_is_gone, ()),
    (m.RevivesTheKeyToo, C.test_a_revived_letter_is_delivered_again_and_is_gone, ()),
    (m.SaysThatItDid, C.test_a_dropped_letter_is_forgotten, ()),
    (m.IgnoresOrderKeys, C.test_what_has_one_key_is_handled_one_after_the_other, ()),
    (m.IgnoresOrderKeys, C.test_a_key_with_many_messages_does_not_keep_others_waiting, ()),
    (m.HasOneLineForAllKeys, C.test_keys_do_not_wait_for_each_other, ()),
    (m.LetsOthersOvertakeARetry, C.test_what_is_tried_again_keeps_its_place, ()),
    (m.DoesAllWithAKey, C.test_a_second_request_with_a_key_gets_the_reply_of_the_first, ("is done",)),
    (m.AnswersOnlyTheFirst, C.test_a_second_request_with_a_key_gets_the_reply_of_the_first, ("runs",)),
    (m.SharesKeysAmongQueues, C.test_a_key_belongs_to_its_queue, ()),
    (m.LetsTheExpiredKeepTheirKey, C.test_a_first_that_has_expired_does_not_block_a_second, (False,)),
    (
        m.RemembersThatTheFirstWasRefused,
        C.test_a_first_that_has_expired_does_not_block_a_second,
        (True,),
    ),
    (m.ListensToTheFirstAloneForHowLong, C.test_whoever_waits_longest_decides_when_it_expires, ()),
    (m.DoesAllWithAKey, C.test_what_nobody_waits_for_is_answered_to_those_who_ask_later, ()),
    (
        m.WithdrawsWhatOthersWaitFor,
        C.test_a_caller_that_leaves_does_not_take_along_what_others_wait_for,
        (),
    ),
    (m.SaysThatEveryQueueIsServed, C.test_it_is_known_whether_a_queue_is_served, ()),
    (m.ForgetsWhomItServesWhileBusy, C.test_it_is_known_whether_a_queue_is_served, ()),
    (m.HasAlwaysRoom, C.test_a_full_queue_refuses_more_until_there_is_room, ()),
    (m.CountsAllQueuesAsOne, C.test_a_full_queue_refuses_more_until_there_is_room, ()),
    (m.FinishesNothingLater, C.test_a_handler_may_finish_after_it_has_returned, ()),
    (m.FinishesOnlyInItsThread, C.test_a_handler_may_finish_after_it_has_returned, ()),
    (m.FinishesOnlyInItsThread, C.test_an_event_loop_may_finish_what_a_thread_was_given, ()),
    (m.FinishesTwice, C.test_only_the_first_end_counts, ()),
    (m.FinishesTheOldest, C.test_what_is_in_hand_is_finished_in_any_order, ()),
    (m.FinishesOnlyInOrder, C.test_so_many_are_in_hand_and_no_more, ()),
    (m.HasAlwaysRoomInHand, C.test_so_many_are_in_hand_and_no_more, ()),
    (m.HasAlwaysRoomInHand, C.test_what_there_is_no_room_for_is_left_to_others, ()),
    (m.ForgetsThatThereIsRoom, C.test_so_many_are_in_hand_and_no_more, ()),
    (m.StartsAThreadForEach, C.test_what_is_in_hand_costs_no_thread, ()),
    (m.EndsBeforeWhatIsInHand, C.test_a_stop_waits_for_what_is_in_hand, ()),
    (m.NeverWithdraws, C.test_whoever_has_it_is_told_that_nobody_waits_any_more, ()),
    (m.CancelsEverybody, C.test_whoever_has_it_is_told_that_nobody_waits_any_more, ()),
    (
        m.CountsWhatIsHandedBackAsADeath,
        C.test_what_is_handed_back_goes_to_others_and_does_not_count_as_a_death,
        (),
    ),
    (
        m.ForgetsThatItWasBegun,
        C.test_what_is_handed_back_goes_to_others_and_does_not_count_as_a_death,
        (),
    ),
    (
        m.KeepsWhatItShouldHandBack,
        C.test_what_is_handed_back_goes_to_others_and_does_not_count_as_a_death,
        (),
    ),
]


CAUGHT = (AssertionError, pytest.fail.Exception, RpcTimeout, QueueFull)


def run(mutant: type[Mutant], test: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with BrokenSite(f"memory://{uuid4().hex}", mutant) as site:
        test(Conformance(), site, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "test", "arguments"),
    MUTANTS,
    ids=[f"{each.__name__}-{test.__name__}" for each, test, _ in MUTANTS],
)
def test_the_suite_catches_a_backend_that(
    monkeypatch: pytest.MonkeyPatch,
    mutant: type[Mutant],
    test: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    monkeypatch.setattr(site_module, "PATIENCE", 0.5)  # most do not what the test waits for
    with pytest.raises(CAUGHT):
        run(mutant, test, arguments)


@pytest.mark.parametrize(
    ("test", "arguments"),
    sorted({(test, arguments) for _, test, arguments in MUTANTS}, key=lambda pair: pair[0].__name__),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_lets_one_pass_that_is_not_broken(test: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    run(HandsBack, test, arguments)
