"""Rules of the selection beside the order: near-duplicates and caps."""
