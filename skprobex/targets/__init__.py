"""The y side (private): labels, texts and the space they share with models."""
