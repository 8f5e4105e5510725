"""The embedded model: the scenes that it learns from and is measured on, and its training."""
