"""Model families, one file each; `table` says which there are."""
