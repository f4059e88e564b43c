"""`gqakit demo`: the main job on a real pretrained model."""
