"""Everything that decides: how many heads each layer keeps, which share, how they merge."""
