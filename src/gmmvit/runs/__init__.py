"""Run folders: their files, what is measured and answered with the models in them, and their export."""
