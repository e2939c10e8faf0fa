"""Statistics on plain numbers: intervals, relative, comparisons. Start with intervals.estimate."""
