"""Pictures of rules and of traffic: what they show, and how SVG, Mermaid and Graphviz spell it."""
