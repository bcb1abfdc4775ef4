"""Curated sets as trainers and evaluation suites read them: cut clips, captions beside them, and their provenance."""
