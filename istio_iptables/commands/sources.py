"""Where the rules of a question come from: a namespace, a file, a manifest or the flags."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from istio_iptables.api.rules import Live
from istio_iptables.commands.inputs import (
    CAPTURE_SETTINGS,
    read_inputs,
    read_rules,
    require_namespace,
)
from istio_iptables.commands.load import Purpose
from istio_iptables.commands.options import flags_given
from istio_iptables.commands.pod import POD_OPTIONS, read_pod
from istio_iptables.errors import UsageProblems
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.sources import gather

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.rules import Source

__all__ = ["SOURCE_OPTIONS", "Asked", "read_asked", "require_file", "settings_given"]

#: The settings that say where the rules are and how to be told, and nothing of what they are.
_ELSEWHERE = frozenset(
    {"network_namespace", "cni_mode", "force_iptables_binary", "strict"}
    | {"native_nftables", "nft_like_iptables", "nft_sets"}
)
_DECIDING = tuple(each for each in CAPTURE_SETTINGS if each.name not in _ELSEWHERE)

SOURCE_OPTIONS = (
    *POD_OPTIONS,
    click.Option(
        ["--live"],
        is_flag=True,
        help="The rules in the kernel: of this namespace, or of --network-namespace.",
    ),
    click.Option(
        ["--rules"],
        metavar="FILE",
        help="The rules of this file, as iptables-save or nft prints them; - is stdin.",
    ),
    click.Option(
        ["--family"],
        type=click.Choice([each.value for each in Family]),
        help="The family of that file, if its comments and addresses don't tell.",
    ),
)


class Asked(NamedTuple):
    """The rules that a question is about, as the functions of the API take them."""

    #: None where no settings were given: the rules tell them.
    plan: Plan | None
    #: None for those of the plan.
    rules: Source | None
    family: Family | None
    #: What messages call a text.
    name: str
    strict: bool
    #: The pod of ``--pod``, as messages name it.
    pod: str = ""

    @property
    def there(self) -> Source:
        """The rules themselves: those of the plan where no others are named."""
        if self.rules is not None:
            return self.rules
        from istio_iptables.api.comparing import planned_rulesets

        assert self.plan is not None  # noqa: S101 - for mypy: one of them is there
        return planned_rulesets(self.plan)


def require_file(family: str | None, path: str | None, option: str) -> None:
    """Raise UsageProblems for a ``--family`` without the file of *option*, of whose rules it tells."""
    if family is not None and path is None:
        message = f"--family: tells of the file of {option}, and none is given (see --ip-family)"
        raise UsageProblems([message])


def settings_given(ctx: click.Context, options: Mapping[str, Any], *, environ: bool = True) -> bool:
    """Whether any setting that decides about rules is given: by a flag, a manifest or a variable.

    Without *environ* variables don't count.
    """
    if options["pod"] is not None:
        return True
    texts = flags_given(ctx)
    values, _ = gather(texts, os.environ if environ else {}, _DECIDING)
    return any(value.given for value in values.values())


def read_asked(
    ctx: click.Context,
    options: Mapping[str, Any],
    *,
    ways: Collection[str] = ("outbound", "inbound"),
    live_alone: bool = True,
    either_family: bool = False,
) -> Asked:
    """What *options* (those of ``SOURCE_OPTIONS``) and the settings of a command say.

    With *live_alone* a command line that names neither settings nor rules is about this namespace;
    without it, about the plan of the defaults. *ways* are the directions in which it matters what a
    plan leaves uncaptured, and with *either_family* a plan has both families unless the settings say
    otherwise. Raises UsageProblems for what contradicts itself, CannotTell for rules
    that can't be read.
    """
    path, namespace = options["rules"], flags_given(ctx).get("network_namespace")
    if path is not None and (options["live"] or namespace):
        raise UsageProblems(["--rules: the rules are the file's, or live ones: give one of them"])
    if "incoming" not in options:
        # Of a packet it is the family, too.
        require_file(options["family"], path, "--rules")
    live = options["live"] or bool(namespace or os.environ.get("NETWORK_NAMESPACE"))
    if live_alone and path is None and not settings_given(ctx, options, environ=False):
        live = True
    if path is None:
        require_namespace(ctx)
    given = read_pod(options)
    # Somebody else's rules, or there is no plan: its family must not depend on this machine.
    unplanned = live and not settings_given(ctx, options)
    plan = read_inputs(
        ctx,
        either_family=either_family or path is not None or unplanned,
        given=given,
        purpose=Purpose(ways if path is None and not live else (), follow=False),
    )
    rules: Source | None = None
    if path is not None:
        rules = read_rules(path, options["family"])
    elif live:
        config = plan.config
        rules = Live(config.network_namespace, config.backend, config.native_nftables)
    return Asked(
        plan if rules is None or settings_given(ctx, options) else None,
        rules,
        Family(options["family"]) if options["family"] else None,
        "stdin" if path == "-" else path or "",
        plan.config.strict,
        given.pod if given else "",
    )
