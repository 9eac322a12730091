"""A program's machine as it was at one moment, and the way back, in place: what one request has
left behind is gone before the next one comes.

What is put back: private memory, the map of it and its rights; all registers; files, descriptors,
and what else the kernel keeps for a process; the output that is kept here (what was handed on has
been). What is not: real time, what the host has in its files, and pages of the window, which are
the ledger's.
"""

from __future__ import annotations

from vmm.kvm import kvm_regs, kvm_sync_regs
from vmm.linux.files.since import Since
from vmm.linux.process import Process


class Kept:
    """One program that does not run, with an MmioWrite as its last exit, or none pending.

    since     what has been changed of its files, and of what else its calls change
    rewind    its memory's contents

    Not thread-safe.
    """

    def __init__(self, process: Process) -> None:
        """Keep what there is, instead of what was kept before: that cannot be put back any more,
        whatever is raised. Raises OSError, ResourceError. As for `Rewind`, the caller notes what
        the kernel gives.
        """
        self._process = process
        vcpu = process.gate.vcpu
        self._registers = kvm_sync_regs(
            kvm_regs(*vcpu.next_words()), vcpu.get_sregs(), vcpu.get_events()
        )
        self._xsave = vcpu.get_xsave()
        self._notes = process.notes()
        self.since = Since(process)
        self._map, self.rewind = process.memory.keep()
        process.files.changes.since = self.since

    def put_back(self) -> None:
        """Let the machine be what it was. Again is fine, and must be if it was cut off: it is to
        run no further until this has returned. Raises OSError.
        """
        process = self._process
        process.memory.finish()  # as before a call that was cut off is undone
        process.go_back(self._notes)
        if self.since.changed:
            self.since.put_back()
        process.memory.put_back(self._map, self.rewind)
        vcpu = process.gate.vcpu
        vcpu.set_xsave(self._xsave)
        vcpu.enter_as(self._registers)
