"""Events, and the file they are written to."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from vmm.errors import ResourceError
from vmm.ferry.events import Event, Trace
from vmm.observe.trace import TraceFile


def test_a_trace_is_true_when_somebody_listens() -> None:
    trace = Trace()
    trace.emit("nobody hears this")
    assert not trace
    trace.listen(lambda event: None)
    assert trace


def test_every_listener_gets_every_event_in_order() -> None:
    trace = Trace()
    first: list[Event] = []
    second: list[Event] = []
    trace.listen(first.append)
    trace.emit("one", number=1)
    trace.listen(second.append)
    trace.emit("two")
    assert [(event.kind, event.fields) for event in first] == [("one", {"number": 1}), ("two", {})]
    assert second == first[1:]
    assert first[0].ns <= first[1].ns


def test_what_a_listener_raises_reaches_the_one_who_emits() -> None:
    trace = Trace()

    def fail(event: Event) -> None:
        raise ResourceError(event.kind)

    trace.listen(fail)
    with pytest.raises(ResourceError, match="full"):
        trace.emit("full")


def test_events_are_lines_of_json_and_the_first_is_at_time_zero(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with TraceFile(path) as listener:
        listener(Event(5_000_000, "send", {"machine": "a\nb", "extents": [{"gpa": 1 << 40}]}))
        listener(Event(5_001_500, "stop", {"fault": None}))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"us": 0, "event": "send", "machine": "a\nb", "extents": [{"gpa": 1 << 40}]},
        {"us": 1.5, "event": "stop", "fault": None},
    ]


def test_a_descriptor_is_written_to_and_stays_open(tmp_path: Path) -> None:
    with (tmp_path / "trace").open("w") as file:
        with TraceFile(file.fileno()) as listener:
            listener(Event(0, "send", {}))
        file.write("and more")
    assert (tmp_path / "trace").read_text() == '{"us": 0.0, "event": "send"}\nand more'


def test_closing_a_trace_file_again_does_nothing(tmp_path: Path) -> None:
    listener = TraceFile(str(tmp_path / "trace"))
    listener(Event(0, "send", {}))
    listener.close()
    listener.close()
    assert (tmp_path / "trace").read_text() == '{"us": 0.0, "event": "send"}\n'


@pytest.mark.parametrize(
    ("name", "why"), [("missing/trace", "No such file or directory"), ("", "Is a directory")]
)
def test_an_unwritable_path_is_a_resource_error_that_names_it(
    tmp_path: Path, name: str, why: str
) -> None:
    path = tmp_path / name
    with pytest.raises(ResourceError) as caught:
        TraceFile(path)
    assert str(caught.value) == f"cannot write the trace to {path}: {why}: name another file"


def test_a_line_is_in_the_file_as_soon_as_its_event_has_happened(tmp_path: Path) -> None:
    with TraceFile(tmp_path / "trace") as listener:
        listener(Event(0, "send", {}))
        assert (tmp_path / "trace").read_text() == '{"us": 0.0, "event": "send"}\n'


def test_a_full_disk_is_a_resource_error_at_the_first_line_and_again_when_closing() -> None:
    listener = TraceFile("/dev/full")
    for use in (lambda: listener(Event(0, "send", {})), listener.close):
        with pytest.raises(ResourceError, match="trace to /dev/full: No space left on device"):
            use()
    listener.close()


def test_an_error_under_way_is_reported_before_a_full_disk() -> None:
    with pytest.raises(KeyError), TraceFile("/dev/full") as listener:
        with suppress(ResourceError):
            listener(Event(0, "send", {}))
        raise KeyError
