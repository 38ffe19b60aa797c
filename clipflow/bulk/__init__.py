"""Work on whole collections, without a service: exchange with other tools, another number of shards."""
