"""The model code that ships in every grouped checkpoint."""
