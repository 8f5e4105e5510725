"""Pictures with phrases and masks: samples, and readers of data sets and folders."""
