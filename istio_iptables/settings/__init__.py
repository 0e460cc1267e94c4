"""What the user asked for: every setting declared once, its value and where it came from."""
