"""A suite to a run folder: plan its cells, measure them in workers, write each record at once, then the report.

May import: reports, executors, analysis, metrics, suites, training, models, devices, core. Loads no torch.

Start reading at ``run``, then ``plan`` (a suite to cells), ``measure`` (cells to records) and ``turns`` (how several
cells share the machine).
"""
