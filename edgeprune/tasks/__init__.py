"""Tasks: what is trained for, what is measured and what a budget counts."""
