"""Accuracy over latency on trained networks, edgeprune beside its peers; see scripts/bench_accuracy."""
