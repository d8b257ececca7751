"""Every write. A status changes here or nowhere: compare-and-set and its event in one transaction.

chain (events of a job, hash-chained) · jobs · steps · inbox (deliveries) · effects (outside writes) · workers.
"""
