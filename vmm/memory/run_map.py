"""A window's runs: an interval map whose most frequent changes are made in one go. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from vmm.memory.runs import IntervalMap, Run

_new = tuple.__new__


class RunMap(IntervalMap[Run]):
    """As any other interval map of runs; a single run comes and goes without a call of anything
    else.
    """

    def insert(self, item: Run) -> None:
        if self.turn != self.journal.turn:
            self.journal.keep(self)
        page, pages, frame, hold = item
        starts, ends, items = self.starts, self.ends, self.items
        index, end = bisect_left(starts, page), page + pages
        if index and ends[index - 1] == page:
            first, count, other, held = items[index - 1]
            if held is hold and other + count == frame:  # it continues that one
                items[index - 1] = _new(Run, (first, count + pages, other, hold))
                ends[index - 1] = end
                self._join_next(index - 1)
                return
        if index < len(items) and starts[index] == end:
            first, count, other, held = items[index]
            if held is hold and frame + pages == other:  # that one continues it
                items[index] = _new(Run, (page, pages + count, frame, hold))
                starts[index] = page
                return
        items.insert(index, item)
        starts.insert(index, page)
        ends.insert(index, end)
        self.tally.intervals += 1

    def discard(self, start: int, pages: int) -> None:
        if self.turn != self.journal.turn:
            self.journal.keep(self)
        starts, ends, items, end = self.starts, self.ends, self.items, start + pages
        index = bisect_right(starts, start) - 1
        if index < 0 or ends[index] < end:
            self.remove(start, pages)
            return
        if start < self.full:
            self.full = start
        page, count, frame, hold = items[index]
        last = page + count
        if page != start:
            items[index] = _new(Run, (page, start - page, frame, hold))
            ends[index] = start
            if last != end:
                items.insert(index + 1, _new(Run, (end, last - end, frame + end - page, hold)))
                starts.insert(index + 1, end)
                ends.insert(index + 1, last)
                self.tally.intervals += 1
        elif last != end:
            items[index] = _new(Run, (end, last - end, frame + end - page, hold))
            starts[index] = end
        else:
            del items[index], starts[index], ends[index]
            self.tally.intervals -= 1
