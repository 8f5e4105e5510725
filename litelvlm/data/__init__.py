"""Pictures with phrases and masks: procedural scenes and readers of data sets."""
