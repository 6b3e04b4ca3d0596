"""Bytes in, bytes out, for one shard: reader, arithmetic, digests, put. Knows nothing of Ray, of threads of the engine, or of recipes."""
