"""The shipped images and manifests in real containers, in a network namespace of their own."""
