"""Annotation at scale: many pictures and phrases in, one row a picture and phrase out."""
