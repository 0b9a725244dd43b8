"""Damaged and hostile files of every kind that edgeprune reads, made anew from a seed."""
