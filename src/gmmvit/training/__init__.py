"""Training: from a recipe to a finished run folder."""

from gmmvit.training.run import comparison, resume, resume_several, train, train_several

__all__ = ["comparison", "resume", "resume_several", "train", "train_several"]
