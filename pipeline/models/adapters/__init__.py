"""One file a family: what its configuration files mean, and what its transformer takes."""
