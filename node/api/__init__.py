"""The doors: HTTP in, JSON out. Each dialect translates here, at the edge, and nowhere else."""
