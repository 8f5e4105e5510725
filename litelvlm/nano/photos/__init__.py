"""Training of the photograph model on photos of the user's."""
