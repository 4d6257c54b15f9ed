"""What the front doors are made of: a door's shared part, the rungs below a release, a model server first, batches."""
