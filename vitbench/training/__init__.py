"""Training and testing on real pictures: data sets, recipes, the loop, the evaluation.

Describing data (data.py) and reading recipes load no torch; loading pictures, training and evaluating do.
"""
