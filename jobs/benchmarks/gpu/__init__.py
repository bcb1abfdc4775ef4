"""Everything that only a GPU can show, in ten minutes on one card, with nothing to download."""
