"""What a run of the model can do besides give logits: record, edit and generate."""

from pellucid.run import stages

__all__ = ["stages"]
