"""Pruning: the plan, the planner that makes it, the surgery that carries it out, and the proof of the cut."""
