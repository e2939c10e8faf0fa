"""The base of every room: types, files, statistics. Imports nothing else of the package; loads no torch.

Start with records (Cell, Measurement, Record), then run_folder, which keeps records in one append-only file.
"""
