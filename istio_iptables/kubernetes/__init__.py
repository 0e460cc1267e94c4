"""Kubernetes manifests as input: the arguments that a pod's istio-init has, or that injection gives it."""
