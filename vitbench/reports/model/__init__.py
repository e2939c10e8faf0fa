"""Records as data to report: rows, and tables of values with units, intervals and statuses. Nothing is formatted."""
