"""Trains the embedded model: dual encoder, mask branch, language model, in this order."""
