"""The placement solver: problem in, placement and plan out. No Kubernetes, Ray or torch."""
