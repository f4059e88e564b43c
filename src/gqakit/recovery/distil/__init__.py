"""Uptraining: a converted checkpoint trained towards its teacher."""
