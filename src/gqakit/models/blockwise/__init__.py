"""A model run block by block: the weights of one block are in memory, transformers' own modules compute."""
