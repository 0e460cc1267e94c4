"""Kubernetes manifests as input: the arguments that a pod's istio-init has, and what injection makes of it."""
