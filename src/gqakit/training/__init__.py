"""Training that brings back what a conversion lost. Importing this imports neither torch nor transformers."""
