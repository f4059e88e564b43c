"""What converting one layer alone costs the model, measured."""
