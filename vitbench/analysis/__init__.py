"""Analysis: why a model costs what it costs, computed from the model or from its card, without measuring time.

May import metrics, suites, training, models, devices and core. Start with model_summary.py (``vitbench show``), then
layers.py and flops.py; claims.py judges published values.
"""
