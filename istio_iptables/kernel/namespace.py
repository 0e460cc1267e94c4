"""Work inside another network namespace."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from istio_iptables.errors import KernelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["entered"]

_RUN_NETNS = "/run/netns"


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Be in the network namespace *namespace* for the length of the block.

    A name under /run/netns, or a path such as /proc/PID/ns/net; "" stays where we are.
    Raises KernelRefused when it does not exist or can't be entered.
    """
    if not namespace:
        yield
        return
    from pyroute2 import netns

    path = namespace if "/" in namespace else f"{_RUN_NETNS}/{namespace}"
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            message = f"can't open the network namespace {path}: {error.strerror}"
            raise KernelRefused(message) from error
        try:
            netns.setns(there)
        except OSError as error:
            # pyroute2's own words for all that may be wrong: "failed to open netns".
            reason = os.strerror(error.errno) if error.errno else error.strerror
            message = f"can't enter the network namespace {path}: {reason}"
            raise KernelRefused(message) from error
        finally:
            os.close(there)
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)
