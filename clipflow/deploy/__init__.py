"""What a cluster has to know of a Flow."""
