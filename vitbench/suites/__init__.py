# ruff: noqa: F401
"""Suites: TOML files that say what to measure, validated before anything runs, and expanded to cells.

May import training, models, devices and core. Importing this loads no torch. Start with schema.py (what a file may
say), then loading.py and expansion.py; thresholds.py and batch_search.py hold the rules of gates and of searches.
"""

from vitbench.suites.expansion import (
    ModelFacts,
    NoCellsLeftError,
    RecipeFacts,
    TrainingFacts,
    check_count,
    expand,
    with_training_size,
)
from vitbench.suites.loading import (
    DEFAULT_SUITE,
    OPTIONS,
    check_thresholds,
    list_suites,
    load_suite,
    make_suite,
    make_thresholds,
    to_toml,
)
from vitbench.suites.schema import NATIVE, RANDOM, TRAIN_IMAGES, Suite, Threshold, Training, default_metrics
