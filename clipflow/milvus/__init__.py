"""Documents in Milvus: what an indexer needs, over its client."""
