"""What Ray costs on this machine, and by that how a cluster of a thousand nodes would do."""
