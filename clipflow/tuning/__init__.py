"""Training: fine-tuning of a checkpoint, and the recipe of the bundled model."""
