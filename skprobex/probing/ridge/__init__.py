"""The closed form: probes, ridge, and all choices, by exact leave-one-out."""
