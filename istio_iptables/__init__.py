"""istio-iptables: the rules that bend a pod's traffic through Envoy."""

__all__ = ["__version__"]

__version__ = "0.1.0"
