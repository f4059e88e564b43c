"""Text in, Moments out: the one forward pass that feeds every method."""
