"""Who is left alone, when, and for how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from dmarc_reports.backoff import FAILURES, Pause, Run, decide

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
WEEK = timedelta(weeks=1)
RUN = Run("example.com", 5, date(2026, 11, 20), date(2026, 11, 24), "refused", 0)


def test_run_of_failures_over_days_begins_a_pause_of_a_week():
    assert decide(RUN, None, NOW, 5, 5) == Pause(NOW, NOW + WEEK, 1)


def test_too_few_failures_or_days_begin_none():
    assert decide(replace(RUN, failures=4), None, NOW, 5, 5) is None
    assert decide(replace(RUN, failures=500, first_day=date(2026, 11, 21)), None, NOW, 5, 5) is None
    assert decide(replace(RUN, failures=1, first_day=RUN.last_day), None, NOW, 1, 1) is not None


def test_nothing_changes_during_a_pause_or_until_the_next_try():
    during = Pause(NOW - WEEK, NOW + timedelta(seconds=1), 1)
    assert decide(replace(RUN, since_pause=3), during, NOW, 5, 5) is None
    assert decide(RUN, replace(during, until=NOW), NOW, 5, 5) is None


def test_one_failure_after_a_pause_doubles_it_up_to_eight_weeks():
    last, weeks = Pause(NOW, NOW + WEEK, 1), []
    now = NOW
    for _ in range(5):
        now = last.until + timedelta(days=1)
        last = decide(replace(RUN, since_pause=1), last, now, 5, 5)
        assert last.until == now + timedelta(weeks=last.weeks)
        assert last.since == NOW
        weeks.append(last.weeks)
    assert weeks == [2, 4, 8, 8, 8]


@pytest.mark.parametrize("fate", ["taken", "deferred", "too_large", "dns_temperror", "not_authorised", "paused", "own"])
def test_other_fates_are_no_failures(fate):
    assert fate not in FAILURES
