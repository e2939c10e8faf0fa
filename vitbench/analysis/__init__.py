"""Complexity analysis: where a model's parameters and FLOPs are."""
