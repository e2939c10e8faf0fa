"""Statistics on plain numbers: warm_up, intervals, relative, comparisons. Start with intervals.estimate."""
