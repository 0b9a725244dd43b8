"""Predictors: how much the networks cut of one dense network lose, by the widths of their channel groups."""
