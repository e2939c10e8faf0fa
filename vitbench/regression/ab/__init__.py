"""``vitbench ab``: time two commits of a repository against each other, in processes that take turns.

From top to bottom: ``cells`` chooses what to compare, ``worktrees`` checks both commits out, ``session`` measures pair
after pair (``pairs``) in processes of both sides (``processes`` starts them, ``side`` runs in them), ``verdicts``
judges the pairs (``sequential`` holds the statistics), and ``session`` writes the files.
"""
