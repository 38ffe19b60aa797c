"""The domain without a Flow; the folders mirror the package."""
