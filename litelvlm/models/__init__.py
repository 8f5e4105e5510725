"""The networks, each behind one small class, and the files their weights come from."""
