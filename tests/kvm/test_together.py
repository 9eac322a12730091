"""Several messages in one doorbell, on the real device: what its host refuses of them included."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from kvm import mappings
from kvm.puppets import Puppet, Span, Stage, descriptor, spans_of

from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status

SEND, LEND = Operation.SEND, Operation.LEND
Hides = list[tuple[int, int]]


@pytest.fixture
def refuse(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hides]:
    """Have the host refuse calls that hide something of a's, by their order; return all of them."""

    def begin(*which: int) -> Hides:
        window, seen = stage.puppets[0].machine.peer.window, list[tuple[int, int]]()
        hide = window.hide

        def note(page: int, count: int) -> None:
            seen.append((page, count))
            if len(seen) - 1 in which:
                raise OSError(errno.ENOMEM, "refused by the test")
            hide(page, count)

        monkeypatch.setattr(window, "hide", note, raising=False)
        return seen

    return begin


def pages(puppet: Puppet, count: int) -> list[Span]:
    """Give it adjacent pages, with a word in each."""
    (own,) = puppet.alloc(count)
    puppet.write(own.gpa, 100, count)
    return [Span(own.gpa + index * PAGE_SIZE, 1) for index in range(count)]


def index(puppet: Puppet, span: Span) -> int:
    return (span.gpa - puppet.base) // PAGE_SIZE


@pytest.fixture(autouse=True)
def _each_sees_what_it_should(stage: Stage) -> Iterator[None]:
    yield
    mappings.check(stage.monitor)


def test_a_doorbell_with_many_messages_hides_once_and_delivers_all(
    stage: Stage, refuse: Callable[..., Hides]
) -> None:
    a, b, c = stage.puppets
    own = pages(a, 6)
    seen = refuse()
    answers = a.ask(
        *(descriptor(SEND, b.number, page, tag=tag) for tag, page in enumerate(own[:3])),
        *(descriptor(LEND, c.number, page, flags=abi.Flags.READONLY) for page in own[3:]),
    )
    assert [answer.status for answer in answers] == [Status.OK] * 6
    assert seen == [(index(a, own[0]), 6)]
    got = b.inbox()
    assert [(m.message, m.tag) for m in got] == [(m.message, t) for t, m in enumerate(answers[:3])]
    assert [b.read(*spans_of(m)[0]) for m in got] == [[100], [101], [102]]
    lent = [spans_of(message)[0] for message in c.inbox()]
    assert [c.read(*span) for span in lent] == [[103], [104], [105]]
    assert a.reclaim(*own[3:]) is Status.OK
    assert a.read(own[3].gpa, 3) == [103, 104, 105]
    for span in lent:
        assert c.release(span) is Status.OK


def test_what_the_host_refuses_together_is_hidden_one_by_one(
    stage: Stage, refuse: Callable[..., Hides]
) -> None:
    a, b, c = stage.puppets
    own = pages(a, 3)
    seen = refuse(0)
    answers = a.ask(
        *(descriptor(SEND, to.number, at) for to, at in zip((b, c, b), own, strict=True))
    )
    assert [answer.status for answer in answers] == [Status.OK] * 3
    first = index(a, own[0])
    assert seen == [(first, 3), (first, 1), (first + 1, 1), (first + 2, 1)]
    assert [b.read(*spans_of(m)[0]) for m in b.inbox()] == [[100], [102]]
    assert c.read(*spans_of(c.one())[0]) == [101]


@pytest.mark.parametrize("operation", [SEND, LEND])
def test_who_is_refused_still_has_its_page_and_the_others_go(
    stage: Stage, refuse: Callable[..., Hides], operation: Operation
) -> None:
    a, b, c = stage.puppets
    own = pages(a, 3)
    sent, refused = a.machine.peer.sent, a.machine.peer.refused
    refuse(0, 2)  # together, and then the second
    receivers = zip((b, c, b), own, strict=True)
    answers = a.ask(*(descriptor(operation, to.number, page) for to, page in receivers))
    assert [answer.status for answer in answers] == [Status.OK, Status.E_NO_MEMORY, Status.OK]
    assert answers[1].message == 0
    assert a.machine.peer.refused == refused + 1
    assert a.machine.peer.sent == sent + 2 + 1  # and what answered the order
    mappings.check(stage.monitor)
    assert a.holds(own[1].gpa) is Hold.OWNED
    assert a.read(own[1].gpa) == [101]
    a.write(own[1].gpa, 7)
    assert [b.read(*spans_of(m)[0]) for m in b.inbox()] == [[100], [102]]
    assert c.inbox() == []
    assert a.send(c, own[1]) is Status.OK
    assert c.read(*spans_of(c.one())[0]) == [7]
    if operation is LEND:
        assert a.reclaim(own[0], own[2]) is Status.OK


def test_messages_in_a_row_to_the_same_go_together_or_not_at_all(
    stage: Stage, refuse: Callable[..., Hides]
) -> None:
    a, b, c = stage.puppets
    own = pages(a, 5)
    refuse(0, 1)  # all together, and then those to b
    receivers = zip((b, b, b, c, c), own, strict=True)
    answers = a.ask(*(descriptor(SEND, to.number, page) for to, page in receivers))
    assert [answer.status for answer in answers] == [Status.E_NO_MEMORY] * 3 + [Status.OK] * 2
    mappings.check(stage.monitor)
    assert a.read(own[0].gpa, 3) == [100, 101, 102]
    assert b.inbox() == []
    assert [c.read(*spans_of(m)[0]) for m in c.inbox()] == [[103], [104]]
