"""The machine room: helpers that know nothing of data sets, networks or epochs.

Each module can be read, tested and replaced by itself. None imports from the floors above.
"""
