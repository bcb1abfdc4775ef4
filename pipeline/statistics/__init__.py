"""Intervals, rank correlations and agreement between people: one of each, used by pages, decisions and logs alike."""
