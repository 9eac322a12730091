"""The Python process as a peer, with pages of its own to send and receive; and how others join."""

from vmm.endpoint.buffer import Buffer
from vmm.endpoint.host import HostEndpoint, Received

__all__ = ["Buffer", "HostEndpoint", "Received"]
