"""What a model is and how it runs."""
