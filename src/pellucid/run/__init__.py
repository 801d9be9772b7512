"""What a run of the model can do besides give logits: record and edit."""
