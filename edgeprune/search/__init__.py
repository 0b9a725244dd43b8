"""Search: the strategies that go from the dense network to a smaller one, step by step, within budgets."""
