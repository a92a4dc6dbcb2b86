"""What a person looks at after a run: the report, and networks side by side in feature space."""
