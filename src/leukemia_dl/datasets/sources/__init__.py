"""The built-in data sets, one file each: a description and a reader. `datasets.registry` lists them."""
