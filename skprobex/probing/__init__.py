"""Private: the numerical core, from weights to fitted experts; no scikit-learn."""
