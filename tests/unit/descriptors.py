"""One descriptor, as the monitor reads it and as it writes it: it does so with many at once."""

from __future__ import annotations

from vmm.ferry.batch import read
from vmm.ferry.message import Message, Request, lay_out
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import Status


def request_of(descriptor: abi.Descriptor) -> Request:
    """Return what a descriptor asks for. Raises Refusal."""
    (request,) = read(bytes(descriptor)).requests()
    if isinstance(request, Status):
        raise Refusal(request)
    return request


def written(message: Message) -> bytes:
    """Return a message as its receiver reads it."""
    return lay_out((message,))
