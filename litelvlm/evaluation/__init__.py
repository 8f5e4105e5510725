"""Parts of the evaluation: what to run, what was measured, how it is summed up and reported."""
