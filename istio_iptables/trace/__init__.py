"""The way of one packet: the hooks it passes, the rules of each table, and where it ends."""
