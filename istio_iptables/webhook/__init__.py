"""The admission webhook: a review of a pod in, the patch that injects it out, over HTTPS."""
