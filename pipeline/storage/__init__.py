"""Bytes on a local disk or on S3, through the same calls.

`stores` reads, writes whole files and lists; `s3` retries a bounded number of times. `lease` lets one job at a time
write to a run, `downloads` fetches weights once a machine, and `parallel` spreads work over threads in order.
"""
