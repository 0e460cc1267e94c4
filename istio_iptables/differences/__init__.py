"""How two rulesets differ: gone, changed, moved and foreign rules, routes and addresses."""
