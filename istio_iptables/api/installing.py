"""A plan into the kernel as one step, and out again."""

from __future__ import annotations

import os

from istio_iptables.errors import KernelRefused
from istio_iptables.istio.ownership import OWNERSHIP
from istio_iptables.kernel.install import InstallOptions
from istio_iptables.kernel.install import clean as kernel_clean
from istio_iptables.kernel.install import install as kernel_install
from istio_iptables.typed import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from istio_iptables.api.capture import Plan
    from istio_iptables.netfilter.model import Ruleset

__all__ = ["Installed", "clean", "install"]


class Installed(NamedTuple):
    """What became of one network namespace."""

    namespace: str
    #: What was done, a line each.
    lines: tuple[str, ...] = ()
    #: What kept it from being done, with the namespace as it was before; None if nothing did.
    error: Exception | None = None


@overload
def install(
    plan: Plan,
    *,
    namespace: str | os.PathLike[str] | None = None,
    namespaces: None = None,
    backend: str | None = None,
    pod_lock: bool | None = None,
    reconcile: bool = False,
    tell: Callable[[str], object] | None = None,
    look: Callable[[Sequence[Ruleset]], None] | None = None,
) -> tuple[str, ...]: ...


@overload
def install(
    plan: Plan,
    *,
    namespaces: Iterable[str | os.PathLike[str]],
    backend: str | None = None,
    pod_lock: bool | None = None,
    reconcile: bool = False,
    tell: Callable[[str], object] | None = None,
    look: Callable[[Sequence[Ruleset]], None] | None = None,
) -> list[Installed]: ...


def install(  # noqa: PLR0913 - where and how
    plan: Plan,
    *,
    namespace: str | os.PathLike[str] | None = None,
    namespaces: Iterable[str | os.PathLike[str]] | None = None,
    backend: str | None = None,
    pod_lock: bool | None = None,
    reconcile: bool = False,
    tell: Callable[[str], object] | None = None,
    look: Callable[[Sequence[Ruleset]], None] | None = None,
) -> tuple[str, ...] | list[Installed]:
    """Make a network namespace hold exactly *plan*, as far as our rules go; all or nothing.

    *namespace* (a name under /run/netns, or a path; "" is the current one), *backend* (``legacy``
    or ``nft``; "" lets what is in use decide) and *pod_lock* (hold the pod's lock only, as
    --cni-mode does) are as the plan's settings have them if they are None. Foreign rules stay as
    they are. What is in place already is left alone. *look* is shown what is there before anything
    changes, and may raise.

    Returns what was done, a line each; *tell* gets each line as it comes. Raises Differs, whose
    ``lines`` list the differences, where other rules of ours are there, unless *reconcile* is true,
    which replaces them; KernelRefused when the machine can't or won't. Then everything is as it was
    before, or ``lines`` say what could not be put back.

    With *namespaces* this is done in each of them, and the list of what became of each is returned,
    in their order: a failure is the ``error`` of its namespace and stops none of the others.
    """
    if namespaces is None:
        return _install(plan, namespace, backend, pod_lock, tell, look, reconcile=reconcile)
    results = []
    for each in namespaces:
        name = os.fspath(each)
        try:
            lines = _install(plan, name, backend, pod_lock, tell, look, reconcile=reconcile)
        except Exception as error:  # noqa: BLE001 - the others are to have their turn all the same
            results.append(Installed(name, error=error))
        else:
            results.append(Installed(name, lines))
    return results


def _install(  # noqa: PLR0913, PLR0917 - as above
    plan: Plan,
    namespace: str | os.PathLike[str] | None,
    backend: str | None,
    pod_lock: bool | None,  # noqa: FBT001 - as above
    tell: Callable[[str], object] | None,
    look: Callable[[Sequence[Ruleset]], None] | None,
    *,
    reconcile: bool,
) -> tuple[str, ...]:
    config = plan.config
    where = InstallOptions(
        config.network_namespace if namespace is None else os.fspath(namespace),
        config.backend if backend is None else backend,
        config.cni_mode if pod_lock is None else pod_lock,
        plan.values["force_iptables_binary"].source if backend is None else "backend=",
    )
    _require_families(plan, where.namespace)
    said, hear = _hearing(tell)
    native = None
    if config.native_nftables:
        from istio_iptables.istio.native import build_native  # most rules are iptables'

        native = build_native(config, plan.state)
    kernel_install(plan.state, OWNERSHIP, hear, where, replace=reconcile, look=look, native=native)
    return tuple(said)


def clean(
    *,
    namespace: str | os.PathLike[str] = "",
    backend: str = "",
    pod_lock: bool = False,
    tell: Callable[[str], object] | None = None,
) -> tuple[str, ...]:
    """Remove our rules of both backends and families and native ones, their routes and address.

    It goes by what is there, and needs no plan; *namespace*, *backend* and *pod_lock* are as in
    ``install``. Returns what was done, a line each; *tell* gets each line as it comes. Raises
    KernelRefused when the machine can't or won't, with everything as it was before.
    """
    said, hear = _hearing(tell)
    kernel_clean(OWNERSHIP, hear, InstallOptions(os.fspath(namespace), backend, pod_lock))
    return tuple(said)


def _hearing(tell: Callable[[str], object] | None) -> tuple[list[str], Callable[[str], None]]:
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        if tell is not None:
            tell(line)

    return said, hear


def _require_families(plan: Plan, namespace: str) -> None:
    """Raise KernelRefused where the plan's address families were assumed, for want of an address."""
    if not plan.config.dry_run or plan.values["ip_family"].text != "auto":
        return
    from istio_iptables.kernel.host import ThisHost

    if not ThisHost().addresses(namespace):
        message = (
            "the namespace has no address but loopback and link-local ones, so it can't be told"
            " whether IPv6 is in use: give ip_family"
        )
        raise KernelRefused(message)
