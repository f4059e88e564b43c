"""What a conversion costs: perplexity, divergence from the source, and the cache as it really is."""
