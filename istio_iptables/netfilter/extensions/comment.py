"""comment: a text, which matches every packet."""

from __future__ import annotations

from istio_iptables.netfilter.extensions import MatchExtension
from istio_iptables.netfilter.parts import only, part
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Match

__all__ = ["MATCHES"]


def _encode(match: Match) -> bytes:
    text = only(match, "--comment").values[0]
    return part("comment", 0, text.encode(errors="surrogateescape").ljust(256, b"\0"))


MATCHES = {
    "comment": MatchExtension(
        rank=0, holds=lambda option, *_: option.name == "--comment" or None, encode=_encode
    )
}
