"""What people see: tables, plots, the model card."""
