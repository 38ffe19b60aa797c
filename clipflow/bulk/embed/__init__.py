"""Pictures with captions to embeddings on disk: readers, a mapper, a writer, and a runner that deals out partitions."""
