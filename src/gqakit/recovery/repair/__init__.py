"""Local repair: converted attention fitted layer by layer to the source's."""
