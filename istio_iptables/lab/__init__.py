"""A throw-away pod with a real Envoy: what the rules do to traffic, seen and held to the plan.

Nodes (pod, client, servers, gateways) are network namespaces inside a world of their own, a
tree of processes that the kernel takes down as a whole when its first one ends, however that
happens. Nothing in here is imported unless ``istio-iptables lab`` is asked for.
"""
