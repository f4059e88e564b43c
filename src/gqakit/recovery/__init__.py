"""What brings quality back after a conversion."""
