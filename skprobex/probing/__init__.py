"""The numerical core: views, probes and solvers. torch in, torch out; no sklearn."""
