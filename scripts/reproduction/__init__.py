"""What scripts/reproduce is made of: the experiments, the recipes of their contenders, results, charts, the page."""
