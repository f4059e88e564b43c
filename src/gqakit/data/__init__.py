"""Files become batches: text, images, speech."""
