"""The built-in data sets, one file each: a reader, and the record that the hook `leukemia_dl_datasets` yields.

Each is a real plugin, made the way a third party would make one. What they share is in `datasets.folders` and
`datasets.frames`.
"""
