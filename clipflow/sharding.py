"""Which shard keeps which document."""

from hashlib import blake2b


def shard_of(identifier: str, shards: int) -> int:
    """The shard of an id, 0 to `shards` - 1: rendezvous hashing, so that another number of shards moves few ids.

    Source: Thaler and Ravishankar, "A name-based mapping scheme for rendezvous", 1996. The id goes to the shard for
    which the hash of both is the largest.
    """
    if shards == 1:
        return 0
    name = identifier.encode('utf-8', 'surrogatepass')
    return max(range(shards), key=lambda shard: blake2b(name, digest_size=8, salt=shard.to_bytes(8, 'big')).digest())
