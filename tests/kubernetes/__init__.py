"""Kubernetes manifests, images and the rest of what a deployment is made of."""
