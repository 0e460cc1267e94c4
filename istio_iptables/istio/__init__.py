"""All that knows Istio: its rules as text with reasons (``rules``), and the plan of them (``plan``)."""
