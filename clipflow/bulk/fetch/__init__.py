"""Pictures behind lists of URLs to WebDataset shards, by img2dataset, within limits."""
