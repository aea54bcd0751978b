"""The papers' networks, trained end to end."""
