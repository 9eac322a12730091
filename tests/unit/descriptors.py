"""One descriptor, as the monitor reads it and as it writes it: it does so with many at once."""

from __future__ import annotations

import ctypes

from vmm.ferry.message import Message, Request, lay_out, requests
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import Status


def request_of(descriptor: abi.Descriptor) -> Request:
    """Return what a descriptor asks for. Raises Refusal."""
    (request,) = requests((descriptor,))
    if isinstance(request, Status):
        raise Refusal(request)
    return request


def written(message: Message) -> bytes:
    """Return a message as its receiver reads it."""
    descriptor = bytearray(b"\xff" * ctypes.sizeof(abi.Descriptor))  # of an earlier one
    lay_out((message,), memoryview(descriptor), (0,))
    return bytes(descriptor)
