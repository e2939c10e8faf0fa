"""Where a group of cells runs: worker processes, started, given tasks, listened to, and ended.

May import: analysis, metrics, suites, training, models, devices, core. Of these files the runner loads only what is
free of torch (``launcher``, ``conversation``, ``protocol``).

Start reading at ``protocol`` (what goes over the pipe), then ``worker`` (the process that measures) and
``conversation`` (the runner's end of the pipe, which turns a worker's death into a status).
"""
