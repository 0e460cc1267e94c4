"""Rules in spellings that people and older iptables use, and iptables-save's own for each.

tests/netfilter/test_canonical.py holds our canonical form against them, and
tests/kernel/test_canonical_kernel.py the real iptables, so that neither can be wrong alone.
"""

from __future__ import annotations

__all__ = ["DIFFERENT", "IPV4_SPELLINGS", "IPV6_SPELLINGS", "ONLY_OURS"]

_CONNMARK_MASKS = "--nfmask 0xffffffff --ctmask 0xffffffff"

IPV4_SPELLINGS = [
    ("-d 10.1.2.3 -j ACCEPT", "-d 10.1.2.3/32 -j ACCEPT"),
    ("-d 10.1.2.3/8 -j ACCEPT", "-d 10.0.0.0/8 -j ACCEPT"),
    ("-s 10.1.2.3/255.255.0.0 -j ACCEPT", "-s 10.1.0.0/16 -j ACCEPT"),
    ("-s 0.0.0.0/0 -j ACCEPT", "-j ACCEPT"),
    ("-d 10.0.0.0/8 -s 1.2.3.4 -j ACCEPT", "-s 1.2.3.4/32 -d 10.0.0.0/8 -j ACCEPT"),
    ("--source 10.0.0.1 --jump ACCEPT", "-s 10.0.0.1/32 -j ACCEPT"),
    ("-p 6 --dport 0x50 -j ACCEPT", "-p tcp -m tcp --dport 80 -j ACCEPT"),
    ("-p tcp --destination-port 80 -j ACCEPT", "-p tcp -m tcp --dport 80 -j ACCEPT"),
    ("-p tcp --dport http -j ACCEPT", "-p tcp -m tcp --dport 80 -j ACCEPT"),
    ("-p udp --sport :1023 -j ACCEPT", "-p udp -m udp --sport 0:1023 -j ACCEPT"),
    ("-p udp --dport 1024: -j ACCEPT", "-p udp -m udp --dport 1024:65535 -j ACCEPT"),
    ("-p tcp --dport 80:80 -j ACCEPT", "-p tcp -m tcp --dport 80 -j ACCEPT"),
    ("-p tcp --dport 80 --sport 90 -j ACCEPT", "-p tcp -m tcp --sport 90 --dport 80 -j ACCEPT"),
    ("-p tcp --syn -j ACCEPT", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT"),
    (
        "-p tcp --tcp-flags ACK,SYN ACK -j ACCEPT",
        "-p tcp -m tcp --tcp-flags SYN,ACK ACK -j ACCEPT",
    ),
    ("-p tcp -m tcp --dport 0:65535 ! --sport 3 -j ACCEPT", "-p tcp -m tcp ! --sport 3 -j ACCEPT"),
    (
        "-p tcp -m multiport --destination-ports 80,90:95 -j ACCEPT",
        "-p tcp -m multiport --dports 80,90:95 -j ACCEPT",
    ),
    ("-m mark --mark 1337 -j RETURN", "-m mark --mark 0x539 -j RETURN"),
    ("-m mark --mark 0x539/0xffffffff -j RETURN", "-m mark --mark 0x539 -j RETURN"),
    ("-m connmark ! --mark 5/15 -j RETURN", "-m connmark ! --mark 0x5/0xf -j RETURN"),
    (
        "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ),
    ("-j MARK --set-mark 1337", "-j MARK --set-xmark 0x539/0xffffffff"),
    ("-j MARK --set-mark 0x1/0x2", "-j MARK --set-xmark 0x1/0x3"),
    ("-j MARK --or-mark 0x8000", "-j MARK --set-xmark 0x8000/0x8000"),
    ("-j MARK --and-mark 0xff", "-j MARK --set-xmark 0x0/0xffffff00"),
    ("-j MARK --xor-mark 0xff", "-j MARK --set-xmark 0xff/0x0"),
    ("-j CONNMARK --save-mark", f"-j CONNMARK --save-mark {_CONNMARK_MASKS}"),
    (
        "-j CONNMARK --restore-mark --mask 0xff",
        "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",
    ),
    ("-j CONNMARK --set-mark 7", "-j CONNMARK --set-xmark 0x7/0xffffffff"),
]

#: What the table nat, raw or mangle alone takes is not tried in filter.
ONLY_OURS = [
    ("-p tcp -j REDIRECT --to-port 15001", "-p tcp -j REDIRECT --to-ports 15001"),
    ("-p tcp -j REDIRECT --to-ports 80-80", "-p tcp -j REDIRECT --to-ports 80"),
    (
        "-p tcp -j TPROXY --tproxy-mark 1337 --on-port 15006",
        "-p tcp -j TPROXY --on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff",
    ),
    ("-j CT --zone 0x2", "-j CT --zone 2"),
    ("-j NOTRACK", "-j CT --notrack"),
    ("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable"),
    ("-m owner --uid-owner 0x539 -j RETURN", "-m owner --uid-owner 1337 -j RETURN"),
    ("-m owner --gid-owner 5-5 -j RETURN", "-m owner --gid-owner 5 -j RETURN"),
    # Before 1.4.3, the sense stood behind the name.
    ("-d ! 127.0.0.1 -p tcp --dport ! 80", "! -d 127.0.0.1/32 -p tcp -m tcp ! --dport 80"),
    # Ports that were written behind another match.
    (
        "-p tcp -m owner --uid-owner 1 --dport 80 -j RETURN",
        "-p tcp -m tcp --dport 80 -m owner --uid-owner 1 -j RETURN",
    ),
    ("-p tcp -m tcp -j RETURN", "-p tcp -j RETURN"),
    ("-p all -j RETURN", "-j RETURN"),
    ("-i + -o eth0 -j RETURN", "-o eth0 -j RETURN"),
    (
        "-p tcp --tcp-flags ALL NONE -j DROP",
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP",
    ),
    # The older match is a part of the newer one.
    (
        "-m state --state RELATED,ESTABLISHED -j ACCEPT",
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ),
    # Matches that only look, in another order.
    (
        "-p tcp -m owner --uid-owner 5 -m tcp --dport 80 -j RETURN",
        "-p tcp -m tcp --dport 80 -m owner --uid-owner 5 -j RETURN",
    ),
]
IPV4_SPELLINGS += ONLY_OURS

IPV6_SPELLINGS = [
    ("-d fd00:0:0::1 -j ACCEPT", "-d fd00::1/128 -j ACCEPT"),
    ("-d FD00::1/16 -j ACCEPT", "-d fd00::/16 -j ACCEPT"),
    ("-s ::/0 -j ACCEPT", "-j ACCEPT"),
    ("-s fd00::/ffff:: -j ACCEPT", "-s fd00::/16 -j ACCEPT"),
    ("-j REJECT", "-j REJECT --reject-with icmp6-port-unreachable"),
    ("-p icmpv6 -j ACCEPT", "-p ipv6-icmp -j ACCEPT"),
    (
        "-p tcp -j TPROXY --on-port 15006 --tproxy-mark 0x1/0xf",
        "-p tcp -j TPROXY --on-port 15006 --on-ip :: --tproxy-mark 0x1/0xf",
    ),
]

#: Pairs that a careless reader may take for the same.
DIFFERENT = [
    ("-d 127.0.0.1 -j RETURN", "! -d 127.0.0.1 -j RETURN"),
    ("-p tcp --dport 80 -j RETURN", "-p tcp --sport 80 -j RETURN"),
    ("-p tcp --dport 80 -j RETURN", "-p udp --dport 80 -j RETURN"),
    ("-j ISTIO_A", "-g ISTIO_A"),
    ("-m mark --mark 0x539/0xff", "-m mark --mark 0x539"),
    ("-m mark --mark 1337", "-m connmark --mark 1337"),
    ("-i lo -j RETURN", "-o lo -j RETURN"),
    ("-j MARK --set-mark 1", "-j MARK --or-mark 1"),
    ("-m limit --limit 1/s -m owner --uid-owner 1", "-m owner --uid-owner 1 -m limit --limit 1/s"),
    ("-m owner --uid-owner 1337", "-m owner --gid-owner 1337"),
]
