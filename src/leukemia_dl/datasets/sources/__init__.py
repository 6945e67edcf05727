"""The built-in data sets, one file each: a reader, and the record that the hook `leukemia_dl_datasets` yields."""
