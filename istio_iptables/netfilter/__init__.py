"""iptables as values: rules, their text, and what can be computed from them alone.

Nothing in this package knows Istio, runs a program or opens a file.
"""
