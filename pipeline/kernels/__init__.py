"""The projection's fast paths: Philox, its entries, and the sums, for CPUs (numba) and for GPUs (Triton)."""
