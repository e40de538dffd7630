"""The story of a key holds what every channel knows of it, in the order of time, and says what it leaves out."""

from __future__ import annotations

from harness.report.story import Story, StoryLine, tell_story
from harness.report.tests.rows import HOSTILE, asked, charged, evidence_of, fault, happened, settled, spanned


def test_a_story_begins_with_its_first_row_and_knows_no_other_key() -> None:
    """Times count from there; spans say how long they took."""
    with evidence_of(
        asked("o1", at_ms=100, took_ms=15), asked("o2", at_ms=0), spanned("o1", at_ms=107, took_ms=2.5)
    ) as evidence:
        story = tell_story(evidence, "o1", lines_max=10)

    assert story == Story(
        key="o1",
        lines=(
            StoryLine(at_ms=0, channel="operations", who="client", what="began: create", took_ms=None),
            StoryLine(at_ms=7, channel="spans", who="payments", what="charge (client)", took_ms=2.5),
            StoryLine(at_ms=15, channel="operations", who="client", what="ended: ok, status 202", took_ms=None),
        ),
        left_out=0,
    )


def test_a_key_that_nobody_knows_has_an_empty_story() -> None:
    """A storm over other keys is no story of this one."""
    with evidence_of(
        asked("o1", at_ms=0), fault(from_ms=0, to_ms=5), happened("orders", "killed", at_ms=1)
    ) as evidence:
        assert tell_story(evidence, "o2", lines_max=10) == Story(key="o2", lines=(), left_out=0)


def test_a_key_of_which_only_the_ledger_knows_has_a_story() -> None:
    """Money that moved for an operation nobody placed is the worst of all."""
    with evidence_of(charged(HOSTILE, at_ms=0)) as evidence:
        (line,) = tell_story(evidence, HOSTILE, lines_max=10).lines

    assert (line.channel, line.who) == ("ledger", "charge")


def test_only_the_storm_of_its_own_time_belongs_to_a_story() -> None:
    """From the key's first row to its last, both included."""
    with evidence_of(
        asked("o1", at_ms=10, took_ms=None),
        settled("o1", at_ms=20, read_ms=30),
        happened("early", "killed", at_ms=9),
        happened("first", "killed", at_ms=10),
        happened("last", "killed", at_ms=30),
        happened("late", "killed", at_ms=31),
    ) as evidence:
        story = tell_story(evidence, "o1", lines_max=10)

    assert [line.who for line in story.lines if line.channel == "processes"] == ["first", "last"]


def test_a_story_at_its_bound_is_whole_and_one_below_leaves_out_a_span() -> None:
    """The bound is the number of lines, and what is missing is counted."""
    with evidence_of(
        asked("o1", at_ms=0, took_ms=5), spanned("o1", at_ms=1), spanned("o1", at_ms=2, number=4)
    ) as evidence:
        whole = tell_story(evidence, "o1", lines_max=4)
        cut = tell_story(evidence, "o1", lines_max=3)

    assert (len(whole.lines), whole.left_out) == (4, 0)
    assert [line.channel for line in cut.lines] == ["operations", "spans", "operations"]
    assert cut.left_out == 1
