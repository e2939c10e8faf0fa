"""Training and testing on real images: data sets, recipes, the loop, the evaluation.

Describing data (data/datasets.py) and reading recipes load no torch; loading images, training and evaluating do.
"""
