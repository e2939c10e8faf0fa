"""Did a change make a model worse? Every gate ends in a list of ``Change``: what was compared, and the verdict.

Imports the rooms from ``runner`` down; loads no torch, except in the processes that ``ab`` starts.

Start with ``change.py``. Then, by command:

- ``vitbench snapshot`` and ``check``: ``snapshot`` counts a suite's models, ``lock_file`` stores the values,
  ``lock_diff`` compares and accepts them;
- ``vitbench ab``: ``ab/`` times two commits in turns;
- ``vitbench compare``: ``compare/`` compares two stored runs;
- ``vitbench history``: ``stored_runs`` finds runs, ``series`` puts them in order, ``history`` finds steps with
  ``change_points``, ``history_page`` and ``history_plots`` render them;
- ``change_text`` renders the changes of all gates;
- the pytest fixture (``vitbench.pytest_plugin``): ``model_guard`` measures a model, ``expected_values`` stores what a
  test expects of it;
- ``pytest_benchmark_json`` reads and writes the files of pytest-benchmark.
"""
