"""What a program opens and is to close: a monitor, a sandbox; and what becomes of it else."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from types import TracebackType
from typing import NoReturn

_known: weakref.WeakSet[Opened] = weakref.WeakSet()


class Opened:
    """Something that holds more than memory of Python's, until `close`, which `with` calls.

    What nobody closes its finalizer does, and warns (ResourceWarning); at the interpreter's end it
    only warns. A child that is forked disowns it. It cannot be copied.
    """

    _closed = True  # or has not been made yet: nothing has to be

    def _note_opened(self) -> None:
        """Have children that are forked from now on disown it."""
        _known.add(self)

    def close(self) -> None:
        """Close it. Further calls do nothing."""
        raise NotImplementedError

    def _disown(self) -> None:
        """Let go of it in a process that was forked: what it holds is the parent's."""
        raise NotImplementedError

    def __del__(self) -> None:
        # A net, not the way. One warning, for all that it holds.
        if self._closed:
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            if not sys.is_finalizing():  # then threads that hold locks are no more
                self.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        what = type(self).__name__
        raise TypeError(f"a {what} cannot be copied or pickled: make one in each process")


def _disown_all() -> None:
    for opened in tuple(_known):
        opened._disown()


os.register_at_fork(after_in_child=_disown_all)
