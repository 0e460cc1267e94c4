"""All that knows Istio: its rules, and the plan that settings come to."""
